"""Thawing: a new guest in the state that a manifest describes.

What is wrong with a manifest, or does not fit what is granted, is found before a guest is made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from wasmetal.actor.chunks import AT_ONCE, ChunkSource
from wasmetal.actor.frozen import Frozen
from wasmetal.actor.grants import Grants
from wasmetal.actor.guest import ActorGuest
from wasmetal.actor.manifest import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    NULL,
    Chunk,
    DeviceBuffer,
    Held,
    Manifest,
    OpenedModel,
    Session,
    SharedBuffer,
)
from wasmetal.actor.memory_image import PAGE
from wasmetal.actor.models import granted_model, language_model
from wasmetal.actor.program import ActorProgram
from wasmetal.actor.stretches import stretches
from wasmetal.actor.threads import Ahead
from wasmetal.device.base import Buffer, Bytes, Device
from wasmetal.errors import SnapshotError, printable
from wasmetal.host.descriptors import Descriptor, File, Input
from wasmetal.host.functions.llm import OpenModel, OpenSession, ready
from wasmetal.host.limits import Limits
from wasmetal.host.view import GuestMemory
from wasmetal.kernels.dtypes import KV, DType
from wasmetal.memory import Region, page_size

if TYPE_CHECKING:
    from wasmetal.models import Session as ModelSession


_PAGES_AT_ONCE = 16
"""Pages that get their memory at once, before it is known whether the snapshot has their bytes."""


class Contents(Protocol):
    """The bytes of an actor's state."""

    frozen: Frozen
    """What the guest is to know of its pieces, once it has them."""

    def memory(self, index: int, memory: Region) -> None:
        """Fill a memory that is as it is in a new instance."""

    def table(self, index: int) -> list[int | None]:
        """The functions in a table."""

    def buffer(self, slot: int, held: DeviceBuffer, buffer: Buffer) -> None:
        """Fill a buffer that is zero."""

    def session(self, slot: int, held: Session, opened: OpenModel) -> Callable[[], ModelSession]:
        """What gives a session with these tokens, and may wait until it has them."""


def check(manifest: Manifest, program: ActorProgram, grants: Grants, limits: Limits) -> None:
    """Raise SnapshotError unless the manifest fits the program, what is granted, and the limits.

    ``grants`` have all the models and folders that the manifest names: see :func:`check_names`.
    """
    _check_state(manifest, program, limits)
    for name, recorded in manifest.models.items():
        given = granted_model(grants.models[name])
        if given.digest != recorded.digest:
            raise SnapshotError(
                f"the model granted as {name!r} is {printable(given.name)}; the actor was frozen with another, "
                f"{printable(recorded.name)}"
            )
    device_bytes = 0
    for slot, held in manifest.handles.held.items():
        if grants.device is None:
            raise SnapshotError("the snapshot has buffers or models, and the program uses no device")
        if isinstance(held, OpenedModel | Session) and language_model(grants.models[held.model]) is None:
            raise SnapshotError(f"the model granted as {held.model!r} is no language model")
        if isinstance(held, SharedBuffer):
            _check_shared(manifest, program, held, max(page_size(), grants.device.info.page_alignment))
        elif isinstance(held, DeviceBuffer):
            device_bytes += held.nbytes
        elif isinstance(held, Session):
            _check_session(manifest, grants, slot, held)
    if device_bytes > limits.device_bytes:
        raise SnapshotError(f"the snapshot has {device_bytes} bytes on the device; the limit is {limits.device_bytes}")


def check_names(
    manifest: Manifest, program: ActorProgram, models: Mapping[str, object], folders: Mapping[str, object]
) -> None:
    """Raise SnapshotError if the program is another one, or something is not granted again."""
    if manifest.program_digest != program.digest:
        raise SnapshotError(
            f"the actor was frozen with another program, {printable(manifest.program_name)} "
            f"(SHA-256 {manifest.program_digest[:16]}…), than {program.name} ({program.digest[:16]}…)"
        )
    for name in manifest.models:
        if name not in models:
            raise SnapshotError(f"the actor was granted a model as {printable(name)!r}: grant it again (models=)")
    for name in manifest.folders:
        if name not in folders:
            raise SnapshotError(f"the actor was granted a folder as {printable(name)!r}: grant it again (dirs=)")
    for name in folders:
        if name not in manifest.folders:
            raise SnapshotError(f"the frozen actor has no folder {name!r}: it cannot be granted another one")


def restore(guest: ActorGuest, manifest: Manifest, contents: Contents) -> None:
    """Bring a new guest, which has run no code, to a manifest's state. Called on its thread.

    Raises SnapshotError, Refusal where a limit is reached, and what the device and the model raise.
    """
    for index, memory in enumerate(manifest.memories):
        contents.memory(index, guest.state.grow(index, memory.pages))
    guest.state.set_globals(manifest.globals)
    for table in manifest.tables:
        guest.state.set_table(table.index, contents.table(table.index))
    guest.descriptors.assign(_descriptors(guest, manifest))
    handles = manifest.handles
    guest.handles.load(handles.key, handles.generations, handles.free)
    for slot, held in handles.held.items():
        guest.handles.put(slot, _held(guest, slot, held, contents))
    guest.clocks.elapsed = manifest.clock
    guest.mailbox.due = manifest.timer
    used, account = manifest.used, guest.account
    for name, total in used.counters.as_dict().items():
        setattr(account.counters, name, total)
    guest.frozen = contents.frozen
    account.disk_bytes, account.files, account.host_time.seconds = used.disk_bytes, used.files, used.host_seconds


def _descriptors(guest: ActorGuest, manifest: Manifest) -> dict[int, Descriptor]:
    found: dict[tuple[str, str | None], Descriptor] = {}
    for _, descriptor in guest.descriptors.items():
        if isinstance(descriptor, File):
            assert descriptor.name is not None
            found["folder", descriptor.name.decode()] = descriptor
        elif isinstance(descriptor, Input):
            found["stdin", None] = descriptor
        else:
            found["stdout" if descriptor is guest.stdout else "stderr", None] = descriptor
    return {each.number: found[each.stands_for, each.folder] for each in manifest.descriptors}


def _held(guest: ActorGuest, slot: int, held: Held, contents: Contents) -> object:
    """What a handle names, made anew."""
    if isinstance(held, SharedBuffer):
        index = guest.program.state.memory
        assert index is not None
        memory = GuestMemory(guest.state.regions[index], guest.program.memory64)
        return guest.gpu.share(memory, held.offset, held.nbytes, held.usage)
    if isinstance(held, DeviceBuffer):
        made = guest.gpu.allocate(held.nbytes, held.usage)
        try:
            contents.buffer(slot, held, made.buffer)
        except BaseException:
            made.buffer.close()
            raise
        return made
    assert guest.llm is not None
    opened = guest.llm.opened(held.model)
    return opened if isinstance(held, OpenedModel) else OpenSession(contents.session(slot, held, opened), opened)


class FromChunks:
    """The contents of a snapshot."""

    def __init__(self, manifest: Manifest, source: ChunkSource, device: Device | None) -> None:
        self._manifest = manifest
        self._source = source
        self._device = device
        self.frozen = Frozen()
        self._know = self.frozen.share if source.in_memory else self.frozen.keep
        self._prefixes: dict[tuple[int, str], tuple[int, Callable[[], ModelSession]]] = {}
        """Sessions by their first blocks: from the number of a beginning and the next block to a longer beginning."""

    def memory(self, index: int, memory: Region) -> None:
        """See :class:`Contents`."""
        view = memory.view()
        chunks = dict(self._manifest.memories[index].content.named)
        for begin, end in stretches(chunks, _PAGES_AT_ONCE):
            memory.populate(begin * PAGE, end * PAGE)
            for page in range(begin, end):
                chunk = chunks[page]
                if chunk is None:
                    view[page * PAGE : (page + 1) * PAGE] = 0
                    continue
                data = self._get(chunk.digest, chunk.size)
                view[page * PAGE : (page + 1) * PAGE] = data
                self._know(("memory", index, page), data, chunk)

    def table(self, index: int) -> list[int | None]:
        """See :class:`Contents`."""
        table = next(table for table in self._manifest.tables if table.index == index)
        if table.functions is None:
            return [None] * table.size
        numbers = self._get(table.functions.digest, table.functions.size).view("<u4").tolist()
        return [None if number == NULL else number for number in numbers]

    def buffer(self, slot: int, held: DeviceBuffer, buffer: Buffer) -> None:
        """See :class:`Contents`."""
        assert self._device is not None
        for index, chunk in held.content.named:
            if chunk:
                data = self._get(chunk.digest, chunk.size)
                self._device.write(buffer, index * BLOCK_BYTES, data)
                self._know(("buffer", slot, index), data, chunk)

    def session(self, slot: int, held: Session, opened: OpenModel) -> Callable[[], ModelSession]:
        """See :class:`Contents`. Sessions that begin with the same blocks share their pages again."""
        digests = [block.digest for block in held.blocks[: held.tokens // BLOCK_TOKENS]]
        root = ~list(self._manifest.models).index(held.model)  # no session has another model's pages
        node, common, other = root, 0, None
        for digest in digests:
            if (node, digest) not in self._prefixes:
                break
            node, other = self._prefixes[node, digest]
            common += 1
        session = other().fork() if other else opened.model.session(opened.holder)
        try:
            session.truncate(common * BLOCK_TOKENS)
            get = self._fill(session, held, held.blocks[common:], digests)
        except BaseException:
            session.close()
            raise
        for digest in digests[common:]:
            number = len(self._prefixes)
            self._prefixes[node, digest] = number, get
            node = number
        return get

    def _fill(
        self, session: ModelSession, held: Session, blocks: Sequence[Chunk], digests: Sequence[str]
    ) -> Callable[[], ModelSession]:
        """Give a session its last tokens. Returns what gives the session, once it has them.

        Chunks that are in memory are copied by another thread, while the guest's first message comes.
        """
        count, dtype = held.tokens - session.length, self._kv_type(held)
        known = digests if dtype is session.model.cache.dtype else ()
        if self._source.in_memory:
            found = [self._get_several(group) for group in _groups(blocks, 4 * AT_ONCE)]  # one may be missing
            return Ahead(partial(_filled, session, session.reserve_rows(count, dtype), found, known)).result
        with closing(self._read(blocks)) as groups:
            return ready(_filled(session, session.reserve_rows(count, dtype), groups, known))

    def _kv_type(self, held: Session) -> DType:
        return DType[self._manifest.models[held.model].kv_type or ""]

    def _read(self, chunks: Sequence[Chunk]) -> Generator[list[Bytes]]:
        """Chunks in groups, of which the next is read while the caller has one."""
        ahead: Ahead[list[Bytes]] | None = None
        groups = list(_groups(chunks, AT_ONCE))
        try:
            for number, group in enumerate(groups):
                blocks = ahead.result() if ahead else self._get_several(group)
                following = groups[number + 1 : number + 2]
                ahead = Ahead(partial(self._get_several, *following)) if following else None
                yield blocks
        finally:
            if ahead:
                ahead.wait()

    def _get(self, digest: str, size: int) -> Bytes:
        return _array(self._source.get(digest, size), digest, size)

    def _get_several(self, chunks: Sequence[Chunk]) -> list[Bytes]:
        found = self._source.get_several([(chunk.digest, chunk.size) for chunk in chunks])
        return [_array(data, chunk.digest, chunk.size) for data, chunk in zip(found, chunks, strict=True)]


def _filled(
    session: ModelSession,
    append: Callable[[Iterable[Sequence[Bytes]]], None],
    groups: Iterable[Sequence[Bytes]],
    digests: Sequence[str],
) -> ModelSession:
    """The session, once it has its tokens. ``digests``: of its whole blocks, unless their rows are converted."""
    try:
        append(groups)
    except BaseException:
        session.close()
        raise
    session.digests = {(number + 1) * BLOCK_TOKENS: digest for number, digest in enumerate(digests)}
    return session


def _groups(chunks: Iterable[Chunk], at_once: int) -> Iterator[list[Chunk]]:
    """Chunks that follow one another, of at most ``at_once`` bytes together, or one."""
    group: list[Chunk] = []
    nbytes = 0
    for chunk in chunks:
        if group and nbytes + chunk.size > at_once:
            yield group
            group, nbytes = [], 0
        group.append(chunk)
        nbytes += chunk.size
    if group:
        yield group


def _array(data: memoryview, digest: str, size: int) -> Bytes:
    if data.nbytes != size:
        raise SnapshotError(f"the snapshot's chunk {digest} has {data.nbytes} bytes; its manifest says {size}")
    return np.frombuffer(data, np.uint8)


def _check_state(manifest: Manifest, program: ActorProgram, limits: Limits) -> None:
    state = program.state
    changing = [index for index, table in enumerate(state.tables) if table.changes]
    if (
        len(manifest.memories) != state.memories
        or {each.index: each.kind for each in manifest.globals} != state.globals
        or [table.index for table in manifest.tables] != changing
    ):
        raise SnapshotError("the snapshot's memories, globals and tables are not those of the program")
    nbytes = sum(memory.pages * PAGE for memory in manifest.memories)
    if nbytes > limits.memory_bytes:
        raise SnapshotError(f"the snapshot has {nbytes} bytes of memory; the limit is {limits.memory_bytes}")
    if (count := len(manifest.handles.held)) > limits.handles:
        raise SnapshotError(f"the snapshot has {count} handles; the limit is {limits.handles}")


def _check_shared(manifest: Manifest, program: ActorProgram, held: SharedBuffer, page: int) -> None:
    index = program.state.memory
    size = 0 if index is None else manifest.memories[index].pages * PAGE
    if held.offset + held.nbytes > size:
        raise SnapshotError(f"a shared buffer of {held.nbytes} bytes at {held.offset:#x} leaves the memory of {size}")
    if held.offset % page or held.nbytes % page:
        raise SnapshotError(
            f"the actor shares {held.nbytes} bytes at {held.offset:#x} with the device, and here pages have {page} "
            "bytes: multiples of 65536 are right everywhere"
        )


def _check_session(manifest: Manifest, grants: Grants, slot: int, held: Session) -> None:
    model = language_model(grants.models[held.model])
    recorded = manifest.models[held.model]
    dtype = next((each for each in KV if each.name == recorded.kv_type), None)
    assert model is not None
    if dtype is None or not model.cache.can_be(dtype):
        raise SnapshotError(f"the session in slot {slot} has keys and values of the type {recorded.kv_type!r}")
    if held.tokens > model.context_length:
        raise SnapshotError(
            f"a session of the actor has {held.tokens} tokens, and here the context of {printable(model.name)} has "
            f"{model.context_length}: load it with a larger one"
        )
    sizes = [min(BLOCK_TOKENS, held.tokens - begin) for begin in range(0, held.tokens, BLOCK_TOKENS)]
    for block, tokens in zip(held.blocks, sizes, strict=True):
        if block.size != tokens * model.cache.bytes_as(dtype):
            raise SnapshotError(f"a block of the session in slot {slot} has {block.size} bytes, which is not its size")
