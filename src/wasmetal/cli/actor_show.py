"""``wasmetal actor show``: what an actor's snapshot takes, what the actor holds, and what of that it shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wasmetal.cli.actor_options import Id, KeyFile, Where, opened_store
from wasmetal.cli.options import Json
from wasmetal.cli.output import in_bytes, print_json, print_table
from wasmetal.errors import SnapshotError, printable

if TYPE_CHECKING:
    from wasmetal.actor.holdings import Holdings, Piece, SessionHeld
    from wasmetal.actor.manifest import Manifest
    from wasmetal.actor.store import Holder, Store

CELLS = 64
"""Characters of a drawing."""
SESSIONS = 8
"""Sessions that are shown one by one."""


def show(actor_id: Id, store: Where = None, key: KeyFile = None, as_json: Json = False) -> None:
    """Show what an actor holds, what its snapshot takes and shares with other actors, and what vouches for it.

    In drawings of memory and of conversations each character is a page of 64 KiB or a block of 32 tokens, or several:
    # this actor's alone, = stored once for this and other actors, 0 zeros, . as it is in the program.
    """
    from wasmetal.actor.holdings import holdings
    from wasmetal.actor.manifest import Manifest
    from wasmetal.actor.store.usage import usage

    opened = opened_store(store, key)
    stored, holder, found = opened.entry(actor_id), opened.holder(actor_id), usage(opened, actor_id)
    with opened.load(actor_id) as snapshot:
        algorithm = snapshot.algorithm
        manifest: Manifest | None = None
        problem = ""
        try:
            manifest = Manifest.from_json(snapshot.manifest)
        except SnapshotError as error:  # of another version, or not wasmetal's
            problem = str(error)
    held = holdings(manifest, found.shared) if manifest else None
    kept = manifest is not None and _keeps(opened, manifest.program_digest)
    if as_json:
        taken = {name: value for name, value in asdict(found).items() if name != "shared"}
        checked = {"algorithm": algorithm, "authenticated": key is not None, "awake": as_holder(holder)}
        state = _state(manifest, held, kept) if manifest and held else None
        print_json(asdict(stored) | taken | checked | {"state": state, "problem": problem or None})
        return
    lines = [
        ("actor", stored.actor_id),
        ("last active", as_time(stored.saved)),
        ("awake in", str(holder or "nothing")),
        *(_rows(manifest, held, kept) if manifest and held else [("state", problem)]),
        ("manifest", in_bytes(stored.manifest_bytes)),
        ("chunks", f"{found.chunks}, {in_bytes(found.chunk_bytes)}"),
        ("shared", f"{found.shared_chunks}, {in_bytes(found.shared_bytes)}, with {_others(len(found.shared_with))}"),
        ("signed by", algorithm + ("" if algorithm == "none" else ", verified" if key else ", not verified: no --key")),
    ]
    print_table(("property", "value"), lines)


def as_holder(holder: Holder | None) -> dict[str, object] | None:
    """Who has an actor awake, for JSON."""
    return asdict(holder) if holder else None


def as_time(seconds: float) -> str:
    """A time in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def drawn(pieces: Mapping[int, Piece], count: int) -> str:
    """``count`` pieces in at most CELLS characters; those that are not named are as in the program.

    A character for several pieces is that of the one that costs most: this actor's own before what is shared, before
    zeros, before what the program has.
    """
    from wasmetal.actor.holdings import Piece

    each = max(1, -(-count // CELLS))
    order = list(Piece)
    cells = [0] * -(-count // each)
    for index, piece in pieces.items():
        cells[index // each] = max(cells[index // each], order.index(piece))
    return "".join(order[cell].value for cell in cells)


def _rows(manifest: Manifest, held: Holdings, kept: bool) -> list[tuple[str, str]]:
    where = "kept by the store" if kept else "not kept by the store"
    rows = [("program", f"{printable(manifest.program_name)} (SHA-256 {manifest.program_digest[:16]}…), {where}")]
    for name, model in manifest.models.items():
        kv_type = f", keys and values of {printable(model.kv_type)}" if model.kv_type else ""
        rows.append(("model", f"{printable(name)}: {printable(model.name)}{kv_type}"))
    rows += [("folder", printable(name)) for name in manifest.folders]
    for memory in held.memories:
        rows += [
            (
                "memory",
                f"{memory.pages} pages of 64 KiB: {memory.kept} kept ({memory.shared} of them shared), "
                f"{memory.zero} zeros, {memory.pages - memory.kept - memory.zero} as in the program",
            ),
            ("", drawn(dict(memory.pieces), memory.pages)),
        ]
    rows += _sessions(held.sessions)
    if held.buffers:
        rows.append(("buffers", f"{held.buffers} in device memory, {in_bytes(held.buffer_bytes)}"))
    if manifest.timer is not None:
        rows.append(("timer", f"due at {as_time(manifest.timer / 1e9)}"))
    return rows


def _sessions(sessions: Sequence[SessionHeld]) -> list[tuple[str, str]]:
    rows = []
    for session in sessions[:SESSIONS]:
        rows.append(("session", f"{session.tokens} KV tokens of {printable(session.model)}, {_blocks([session])}"))
        if session.blocks:
            rows.append(("", drawn(dict(enumerate(session.pieces)), session.blocks)))
    if more := sessions[SESSIONS:]:
        tokens = sum(session.tokens for session in more)
        rows.append(("sessions", f"{len(more)} more, {tokens} KV tokens, {_blocks(more)}"))
    return rows


def _blocks(sessions: Sequence[SessionHeld]) -> str:
    nbytes, blocks, shared = (
        sum(getattr(session, name) for session in sessions) for name in ("bytes", "blocks", "shared")
    )
    return f"{in_bytes(nbytes)} in {blocks} blocks ({shared} of them shared)"


def _state(manifest: Manifest, held: Holdings, kept: bool) -> dict[str, Any]:
    return {
        "program": {"name": manifest.program_name, "digest": manifest.program_digest, "kept": kept},
        "arguments": list(manifest.arguments),
        "models": {name: model.to_json() for name, model in manifest.models.items()},
        "folders": list(manifest.folders),
        "memories": [_counts(asdict(memory)) for memory in held.memories],
        "sessions": [_counts(asdict(session)) for session in held.sessions],
        "buffers": held.buffers,
        "buffer_bytes": held.buffer_bytes,
        "timer": None if manifest.timer is None else manifest.timer / 1e9,
        "counters": manifest.used.counters.as_dict(),
    }


def _counts(held: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if name != "pieces"}


def _keeps(store: Store, digest: str) -> bool:
    from wasmetal.actor.kept_programs import Programs

    try:
        return Programs(store).find(digest) is not None
    except SnapshotError:  # damaged
        return False


def _others(count: int) -> str:
    return "1 other actor" if count == 1 else f"{count} other actors"
