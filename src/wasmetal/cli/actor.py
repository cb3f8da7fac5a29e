"""``wasmetal actor``: actors, and their snapshots in a store."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from wasmetal.cli import actor_talk
from wasmetal.cli.actor_options import Id, KeyFile, Where, opened_store, read_key
from wasmetal.cli.actor_show import as_holder, as_time, show
from wasmetal.cli.options import Json
from wasmetal.cli.output import in_bytes, print_json, print_table
from wasmetal.errors import WasmetalError, setting_up

actor = typer.Typer(
    help="Actors, and their snapshots in a store: make, thaw and fork them, send them messages, list and carry them.",
    no_args_is_help=True,
)

# Everything after the program, options included, is for the actor.
actor.command(context_settings={"allow_interspersed_args": False})(actor_talk.run)
actor.command(context_settings={"allow_interspersed_args": False})(actor_talk.freeze)
actor.command()(actor_talk.thaw)
actor.command()(actor_talk.send)
actor.command()(actor_talk.fork)
actor.command()(show)


@actor.command("list")
def listed(store: Where = None, as_json: Json = False) -> None:
    """List the actors that have a snapshot, and where they are awake."""
    opened = opened_store(store)
    found = [(opened.entry(actor_id), opened.holder(actor_id)) for actor_id in opened.actors()]
    if as_json:
        print_json([asdict(stored) | {"awake": as_holder(holder)} for stored, holder in found])
        return
    print_table(
        ("actor", "saved", "awake in"),
        [(stored.actor_id, as_time(stored.saved), str(holder or "")) for stored, holder in found],
    )


@actor.command()
def export(
    actor_id: Id,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to; - is standard output  [default: ACTOR.actor]")
    ] = None,
    store: Where = None,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Write an actor's snapshot, its chunks and its program to one file, and print its path. Models are not in it."""
    from wasmetal.actor.kept_programs import named_by
    from wasmetal.actor.store import container
    from wasmetal.cli.awake import kept_binary

    opened, secret = opened_store(store, key), read_key(key)
    path = file or Path(f"{actor_id}.actor")
    if as_json and str(path) == "-":
        raise WasmetalError("the snapshot goes to standard output, and so would --json: name a file")
    with opened.load(actor_id) as snapshot:
        digest = named_by(snapshot)
        program = kept_binary(opened, digest) if digest else None
        if program is None:
            print("the program is not in the file, since the store does not keep it", file=sys.stderr)
        if str(path) == "-":
            container.write(sys.stdout.buffer, snapshot, secret, program)
            return
        if path.exists():
            raise WasmetalError(f"{path} exists already: name another file, or remove it")
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with setting_up(f"write {path}"):
            try:
                with part.open("xb") as out:
                    nbytes = container.write(out, snapshot, secret, program)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    if as_json:
        print_json({"actor": actor_id, "file": str(path), "nbytes": nbytes, "program": program is not None})
        return
    print(path)


@actor.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported file; - is standard input.")],
    name: Annotated[str | None, typer.Option("--as", metavar="ACTOR", help="Under this id, not the file's.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Even if there is a snapshot of that actor.")] = False,
    store: Where = None,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Put an exported snapshot and its program into the store, and print the actor's id."""
    from wasmetal.actor.kept_programs import Programs
    from wasmetal.actor.store import container

    opened, secret = opened_store(store, key, create=True), read_key(key)
    with ExitStack() as stack:
        source: BinaryIO = sys.stdin.buffer
        if str(file) != "-":
            with setting_up(f"read {file}"):
                source = stack.enter_context(file.open("rb"))
        actor_id = container.read_into(opened, source, actor_id=name, key=secret, replace=replace)
    Programs(opened).keep_carried(actor_id)
    if as_json:
        print_json({"actor": actor_id})
        return
    print(actor_id)


@actor.command()
def rm(
    actor_ids: Annotated[list[str], typer.Argument(metavar="ACTOR...", help="Actors.", show_default=False)],
    store: Where = None,
) -> None:
    """Delete actors' snapshots. What they took is freed by the next `wasmetal actor gc`."""
    opened = opened_store(store)
    for actor_id in actor_ids:
        opened.delete(actor_id)
        print(f"deleted {actor_id}")


@actor.command()
def gc(store: Where = None, as_json: Json = False) -> None:
    """Remove chunks that no snapshot names, and programs that none has named for a day."""
    from wasmetal.actor.kept_programs import Programs

    opened = opened_store(store)
    found, programs = opened.gc(), Programs(opened).collect()
    if as_json:
        print_json(asdict(found) | {"programs": asdict(programs)})
        return
    print(f"removed {found.removed} chunks, {in_bytes(found.removed_bytes)}; {found.kept} remain")
    print(f"removed {programs.removed} programs, {in_bytes(programs.removed_bytes)}; {programs.kept} remain")
