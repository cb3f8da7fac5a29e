"""Freezing: an actor's state as a manifest, and its bytes as chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from wasmetal.actor import manifest
from wasmetal.actor.chunks import AT_ONCE, ChunkSink
from wasmetal.actor.frozen import Frozen
from wasmetal.actor.guest import ActorGuest
from wasmetal.actor.manifest import BLOCK_BYTES, BLOCK_TOKENS, NULL, Chunk, Manifest, Pieces
from wasmetal.actor.memory_image import PAGE
from wasmetal.actor.models import granted_model
from wasmetal.actor.stretches import stretches
from wasmetal.device.base import Bytes
from wasmetal.errors import SnapshotError
from wasmetal.host.commands import GuestBuffer
from wasmetal.host.descriptors import Descriptor, File, Input
from wasmetal.host.functions.llm import OpenModel, OpenSession
from wasmetal.host.submissions import Submitted

if TYPE_CHECKING:
    from wasmetal.models import Session as ModelSession


@dataclass(frozen=True, slots=True)
class _Freezing:
    """Where contents go, and what is known of those that went somewhere before."""

    sink: ChunkSink
    before: Frozen
    after: Frozen = field(default_factory=Frozen)


def capture(guest: ActorGuest, sink: ChunkSink | None) -> Manifest:
    """The state of a guest none of whose code runs. Called on its thread.

    ``sink`` takes the contents of memories, tables, buffers and sessions, but for those that have not changed since
    the guest was frozen or thawed last, and that it has. None: they are left out, for a caller who has them from the
    guest itself. Raises SnapshotError if the guest has something that cannot be frozen.
    """
    _check(guest)
    if sink is None:
        return _captured(guest, None)
    freezing = _Freezing(sink, guest.frozen)
    found = _captured(guest, freezing)
    guest.frozen = freezing.after
    return found


def _captured(guest: ActorGuest, to: _Freezing | None) -> Manifest:
    mailbox, account = guest.mailbox, guest.account
    key, generations, free = guest.handles.save()
    return Manifest(
        program_name=guest.program.name,
        program_digest=guest.program.digest,
        actor=mailbox.name,
        arguments=guest.arguments,
        environment=guest.environment,
        models={name: granted_model(model) for name, model in guest.grants.models.items()},
        folders=tuple(guest.grants.folders),
        random_seed=mailbox.random.seed.hex(),
        random_position=mailbox.random.position,
        timer=mailbox.due,
        clock=guest.clocks.elapsed,
        used=manifest.Used(replace(account.counters), account.disk_bytes, account.files, account.host_time.seconds),
        memories=tuple(_memory(guest, index, to) for index in range(guest.program.state.memories)),
        globals=guest.state.globals(),
        tables=tuple(_table(guest, index, to) for index in guest.state.changing),
        descriptors=tuple(_descriptor(guest, number, each) for number, each in guest.descriptors.items()),
        handles=manifest.Handles(
            key,
            tuple(generations),
            tuple(free),
            {slot: _held(guest, slot, each, to) for slot, each in guest.handles.items()},
        ),
    )


def _check(guest: ActorGuest) -> None:
    """Raise SnapshotError if there is something that cannot be frozen."""
    for number, descriptor in guest.descriptors.items():
        if isinstance(descriptor, File) and descriptor.name is None:
            what = "directory" if descriptor.is_directory else "file"
            raise SnapshotError(
                f"the actor cannot be frozen: it has an open {what}, descriptor {number}; it must close it before "
                "the end of a message"
            )
    for slot, held in guest.handles.items():
        if isinstance(held, Submitted):
            raise SnapshotError(
                f"the actor cannot be frozen: it has a pending submission, {guest.handles.handle(slot):#x}; it must "
                "wait for it before the end of a message"
            )


def _descriptor(guest: ActorGuest, number: int, descriptor: Descriptor) -> manifest.Descriptor:
    if isinstance(descriptor, File):
        assert descriptor.name is not None
        return manifest.Descriptor(number, "folder", descriptor.name.decode())
    if isinstance(descriptor, Input):
        return manifest.Descriptor(number, "stdin")
    return manifest.Descriptor(number, "stdout" if descriptor is guest.stdout else "stderr")


def _memory(guest: ActorGuest, index: int, to: _Freezing | None) -> manifest.Memory:
    memory = guest.state.regions[index].view()
    pages = len(memory) // PAGE
    if to is None:
        return manifest.Memory(pages, Pieces())
    pieces = [
        (i, None if page is None else to.after.put(to.sink, ("memory", index, i), page, to.before))
        for i, page in guest.state.images[index].differing(memory)
    ]
    return manifest.Memory(pages, Pieces(tuple(pieces)))


def _table(guest: ActorGuest, index: int, to: _Freezing | None) -> manifest.Table:
    functions = guest.state.table(index)
    if to is None or all(function is None for function in functions):
        return manifest.Table(index, len(functions), None)
    numbers = np.array([NULL if function is None else function for function in functions], "<u4")
    return manifest.Table(index, len(functions), Chunk(to.sink.put(numbers.data), numbers.nbytes))


def _held(guest: ActorGuest, slot: int, held: object, to: _Freezing | None) -> manifest.Held:
    match held:
        case GuestBuffer(shared=True):
            return manifest.SharedBuffer(held.offset, held.buffer.nbytes, held.usage)
        case GuestBuffer():
            pieces = tuple(_buffer_pieces(guest, slot, held, to)) if to else ()
            return manifest.DeviceBuffer(held.buffer.nbytes, held.usage, Pieces(pieces))
        case OpenModel():
            return manifest.OpenedModel(held.name)
        case OpenSession():
            blocks = tuple(_session_blocks(held.session, to.sink)) if to else ()
            return manifest.Session(held.opened.name, held.session.length, blocks)
    raise SnapshotError(f"the actor cannot be frozen: it holds a {type(held).__name__}")


def _buffer_pieces(guest: ActorGuest, slot: int, held: GuestBuffer, to: _Freezing) -> Iterator[tuple[int, Chunk]]:
    for index, piece in enumerate(pieces_of(guest, held)):
        if piece.any():
            yield index, to.after.put(to.sink, ("buffer", slot, index), piece, to.before)


def pieces_of(guest: ActorGuest, held: GuestBuffer) -> Iterator[Bytes]:
    """The bytes of a buffer in pieces of BLOCK_BYTES, not copied on unified memory."""
    device, nbytes = guest.grants.device, held.buffer.nbytes
    assert device is not None
    whole = held.buffer.view() if device.info.unified and held.buffer.address is not None else None
    for begin in range(0, nbytes, BLOCK_BYTES):
        end = min(begin + BLOCK_BYTES, nbytes)
        if whole is not None:
            yield whole[begin:end]
            continue
        piece = np.empty(end - begin, np.uint8)
        device.read(held.buffer, begin, piece)
        yield piece


def _session_blocks(session: ModelSession, sink: ChunkSink) -> list[Chunk]:
    """The chunks of a session. Blocks whose digests it knows are read only if the sink does not have them."""
    token_bytes = session.model.cache.position_bytes
    counts = [min(BLOCK_TOKENS, session.length - begin) for begin in range(0, session.length, BLOCK_TOKENS)]
    blocks: dict[int, Chunk] = {}
    for number, count in enumerate(counts):
        digest = session.digests.get(number * BLOCK_TOKENS + count)
        if digest is not None and sink.has(digest, count * token_bytes):
            blocks[number] = Chunk(digest, count * token_bytes)
    missing = [number for number in range(len(counts)) if number not in blocks]
    for begin, end in stretches(missing, max(1, AT_ONCE // (BLOCK_TOKENS * token_bytes))):
        rows = session.rows(begin * BLOCK_TOKENS, counts[begin:end])
        for number, digest in enumerate(sink.put_several([each.data for each in rows]), begin):
            blocks[number] = Chunk(digest, counts[number] * token_bytes)
            if counts[number] == BLOCK_TOKENS:
                session.digests[(number + 1) * BLOCK_TOKENS] = digest
    return [blocks[number] for number in range(len(counts))]
