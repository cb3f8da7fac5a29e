"""Freezing: an actor's state as a manifest, and its bytes as chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from wasmetal.actor import manifest
from wasmetal.actor.chunks import ChunkSink
from wasmetal.actor.guest import ActorGuest
from wasmetal.actor.manifest import BLOCK_BYTES, BLOCK_TOKENS, NULL, Chunk, Manifest, Pieces
from wasmetal.actor.memory_image import PAGE
from wasmetal.actor.models import granted_model
from wasmetal.device.base import Bytes
from wasmetal.errors import SnapshotError
from wasmetal.host.commands import GuestBuffer
from wasmetal.host.descriptors import Descriptor, File, Input
from wasmetal.host.functions.llm import OpenModel, OpenSession
from wasmetal.host.submissions import Submitted


def capture(guest: ActorGuest, sink: ChunkSink | None) -> Manifest:
    """The state of a guest none of whose code runs. Called on its thread.

    ``sink`` takes the contents of memories, tables, buffers and sessions. None: they are left out, for a caller who has
    them from the guest itself. Raises SnapshotError if the guest has something that cannot be frozen.
    """
    _check(guest)
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
        memories=tuple(_memory(guest, index, sink) for index in range(guest.program.state.memories)),
        globals=guest.state.globals(),
        tables=tuple(_table(guest, index, sink) for index in guest.state.changing),
        descriptors=tuple(_descriptor(guest, number, each) for number, each in guest.descriptors.items()),
        handles=manifest.Handles(
            key,
            tuple(generations),
            tuple(free),
            {slot: _held(guest, each, sink) for slot, each in guest.handles.items()},
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


def _memory(guest: ActorGuest, index: int, sink: ChunkSink | None) -> manifest.Memory:
    memory = guest.state.regions[index].view()
    pages = len(memory) // PAGE
    if sink is None:
        return manifest.Memory(pages, Pieces())
    pieces = guest.state.images[index].differing(memory)
    return manifest.Memory(pages, Pieces(tuple((i, None if page is None else _put(sink, page)) for i, page in pieces)))


def _table(guest: ActorGuest, index: int, sink: ChunkSink | None) -> manifest.Table:
    functions = guest.state.table(index)
    if sink is None or all(function is None for function in functions):
        return manifest.Table(index, len(functions), None)
    numbers = [NULL if function is None else function for function in functions]
    return manifest.Table(index, len(functions), _put(sink, np.array(numbers, "<u4").view(np.uint8)))


def _held(guest: ActorGuest, held: object, sink: ChunkSink | None) -> manifest.Held:
    match held:
        case GuestBuffer(shared=True):
            return manifest.SharedBuffer(held.offset, held.buffer.nbytes, held.usage)
        case GuestBuffer():
            pieces = tuple(_buffer_pieces(guest, held, sink)) if sink else ()
            return manifest.DeviceBuffer(held.buffer.nbytes, held.usage, Pieces(pieces))
        case OpenModel():
            return manifest.OpenedModel(held.name)
        case OpenSession():
            blocks = tuple(_put(sink, block) for block in _session_blocks(held)) if sink else ()
            return manifest.Session(held.opened.name, held.session.length, blocks)
    raise SnapshotError(f"the actor cannot be frozen: it holds a {type(held).__name__}")


def _buffer_pieces(guest: ActorGuest, held: GuestBuffer, sink: ChunkSink) -> Iterator[tuple[int, Chunk]]:
    device = guest.grants.device
    assert device is not None
    nbytes = held.buffer.nbytes
    for begin in range(0, nbytes, BLOCK_BYTES):
        piece = np.empty(min(BLOCK_BYTES, nbytes - begin), np.uint8)
        device.read(held.buffer, begin, piece)
        if piece.any():
            yield begin // BLOCK_BYTES, _put(sink, piece)


def _session_blocks(held: OpenSession) -> Iterator[Bytes]:
    length = held.session.length
    for begin in range(0, length, BLOCK_TOKENS):
        yield held.session.rows(begin, min(begin + BLOCK_TOKENS, length)).reshape(-1)


def _put(sink: ChunkSink, data: Bytes) -> Chunk:
    return Chunk(sink.put(data.data), data.size)
