"""``wasmetal actor``: snapshots of actors in a store."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from wasmetal.cli.options import Json, OptionError
from wasmetal.cli.output import in_bytes, print_json, print_table
from wasmetal.errors import WasmetalError, setting_up

if TYPE_CHECKING:
    from wasmetal.actor.store import Holder, Key, Store

actor = typer.Typer(help="Snapshots of actors: list, show, export, import and delete them.", no_args_is_help=True)

Where = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FOLDER|URL",
        envvar="WASMETAL_STORE",
        help="The store  [default: actors, in the folder of WASMETAL_HOME]",
        show_envvar=True,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="A file with a secret of at least 16 random bytes. Snapshots are signed with it, and refused if it does "
        "not authenticate them (HMAC-SHA256).",
    ),
]
Id = Annotated[str, typer.Argument(metavar="ACTOR", help="An actor in the store.", show_default=False)]


@actor.command("list")
def listed(store: Where = None, as_json: Json = False) -> None:
    """List the actors that have a snapshot, and where they are awake."""
    opened = _open(store, None)
    found = [(opened.entry(actor_id), opened.holder(actor_id)) for actor_id in opened.actors()]
    if as_json:
        print_json([asdict(stored) | {"awake": _holder(holder)} for stored, holder in found])
        return
    print_table(
        ("actor", "saved", "awake in"),
        [(stored.actor_id, _time(stored.saved), str(holder or "")) for stored, holder in found],
    )


@actor.command()
def show(actor_id: Id, store: Where = None, key: KeyFile = None, as_json: Json = False) -> None:
    """Show what an actor's snapshot takes, what it shares with other actors, and what vouches for it."""
    from wasmetal.actor.store.usage import usage

    opened = _open(store, key)
    stored, holder, found = opened.entry(actor_id), opened.holder(actor_id), usage(opened, actor_id)
    with opened.load(actor_id) as snapshot:
        algorithm = snapshot.algorithm
    if as_json:
        checked = {"algorithm": algorithm, "authenticated": key is not None}
        print_json(asdict(stored) | asdict(found) | checked | {"awake": _holder(holder)})
        return
    lines = [
        ("actor", stored.actor_id),
        ("saved", _time(stored.saved)),
        ("awake in", str(holder or "nothing")),
        ("manifest", in_bytes(stored.manifest_bytes)),
        ("chunks", f"{found.chunks}, {in_bytes(found.chunk_bytes)}"),
        (
            "shared",
            f"{found.shared_chunks}, {in_bytes(found.shared_bytes)}, with {len(found.shared_with)} other actors",
        ),
        ("signed by", algorithm + ("" if algorithm == "none" else ", verified" if key else ", not verified: no --key")),
    ]
    print_table(("property", "value"), lines)


@actor.command()
def export(
    actor_id: Id,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to; - is standard output  [default: ACTOR.actor]")
    ] = None,
    store: Where = None,
    key: KeyFile = None,
) -> None:
    """Write an actor's snapshot, with all that it needs, to one file, and print its path."""
    from wasmetal.actor.store import container

    opened, secret = _open(store, key), _key(key)
    path = file or Path(f"{actor_id}.actor")
    with opened.load(actor_id) as snapshot:
        if str(path) == "-":
            container.write(sys.stdout.buffer, snapshot, secret)
            return
        if path.exists():
            raise WasmetalError(f"{path} exists already: name another file, or remove it")
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with setting_up(f"write {path}"):
            try:
                with part.open("xb") as out:
                    container.write(out, snapshot, secret)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    print(path)


@actor.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported file; - is standard input.")],
    name: Annotated[str | None, typer.Option("--as", metavar="ACTOR", help="Under this id, not the file's.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Even if there is a snapshot of that actor.")] = False,
    store: Where = None,
    key: KeyFile = None,
) -> None:
    """Put an exported snapshot into the store, and print the actor's id."""
    from wasmetal.actor.store import container

    opened, secret = _open(store, key, create=True), _key(key)
    if str(file) == "-":
        print(container.read_into(opened, sys.stdin.buffer, actor_id=name, key=secret, replace=replace))
        return
    with setting_up(f"read {file}"):
        source: BinaryIO = file.open("rb")
    with source:
        print(container.read_into(opened, source, actor_id=name, key=secret, replace=replace))


@actor.command()
def rm(
    actor_ids: Annotated[list[str], typer.Argument(metavar="ACTOR...", help="Actors.", show_default=False)],
    store: Where = None,
) -> None:
    """Delete actors' snapshots. What they took is freed by the next `wasmetal actor gc`."""
    opened = _open(store, None)
    for actor_id in actor_ids:
        opened.delete(actor_id)
        print(f"deleted {actor_id}")


@actor.command()
def gc(store: Where = None, as_json: Json = False) -> None:
    """Remove chunks that no snapshot names."""
    found = _open(store, None).gc()
    if as_json:
        print_json(asdict(found))
        return
    print(f"removed {found.removed} chunks, {in_bytes(found.removed_bytes)}; {found.kept} remain")


def _open(where: str | None, key: Path | None, create: bool = False) -> Store:
    from wasmetal.actor.store import open_store
    from wasmetal.home import home

    return open_store(where or home() / "actors", key=_key(key), create=create)


def _key(path: Path | None) -> Key | None:
    from wasmetal.actor.store import HmacKey

    if path is None:
        return None
    with setting_up(f"read the key {path}", OptionError):
        return HmacKey(path.read_bytes())


def _holder(holder: Holder | None) -> dict[str, object] | None:
    return asdict(holder) if holder else None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
