"""What every store of actor snapshots does, whatever it lies on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wasmetal.actor.chunks import THREADS, ChunkSource, digests_of
from wasmetal.actor.store import chunk_bytes
from wasmetal.actor.store.envelope import Envelope
from wasmetal.actor.store.leasing import Holder, Lease
from wasmetal.actor.store.manifest_json import Chunks, chunks_of
from wasmetal.actor.store.names import checked_id
from wasmetal.actor.threads import each
from wasmetal.closing import Closing
from wasmetal.errors import NoSnapshotError, SnapshotError, setting_up

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Save(Closing, ABC):
    """A snapshot that is being stored; a :class:`ChunkSink`. Closing it without ``commit`` leaves the old one."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._sizes: Chunks = {}
        """Of the chunks that were put, or found in the store."""

    def put(self, data: Buffer) -> str:
        """Store a chunk, unless it is there; return its digest. Raises SnapshotError if it cannot be stored."""
        return self.put_several([data])[0]

    def put_several(self, several: Sequence[Buffer]) -> list[str]:
        """See :class:`ChunkSink`. Raises what :meth:`put` does."""
        views = [chunk_bytes.as_bytes(data) for data in several]
        digests = digests_of(views)
        for digest, view in zip(digests, views, strict=True):
            self.keep(digest, view)
        return digests

    def keep(self, digest: str, view: memoryview) -> None:
        """Store a chunk by a digest that it was found to have, unless it is there. Raises what :meth:`put` does."""
        if not self.has(digest, view.nbytes):
            with self._setting_up():
                self._write(digest, view)
            self._sizes[digest] = view.nbytes

    def has(self, digest: str, size: int) -> bool:
        """See :class:`ChunkSink`. True for what the lease's last snapshot names, which is not looked at again.

        Raises SnapshotError if the store cannot be read.
        """
        known = self._known(digest)
        if known is not None:
            return known == size
        with self._setting_up():
            if not self._reuse(digest, size):
                return False
        self._sizes[digest] = size
        return True

    @abstractmethod
    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Make this the actor's snapshot, in one step. On the disk when it returns, as the store guarantees.

        Every chunk that the manifest names was put, or is in the store; what the lease's last snapshot named need not
        be put again, nor looked at. Raises SnapshotError if one is not there or the manifest cannot be stored: then the
        old snapshot stands.
        """

    @abstractmethod
    def _reuse(self, digest: str, size: int) -> bool:
        """Whether the chunk is in the store, and will be when this save has ended. Raises OSError."""

    @abstractmethod
    def _write(self, digest: str, view: memoryview) -> None:
        """Store a chunk. Raises OSError."""

    def _known(self, digest: str) -> int | None:
        """The size of a chunk that need not be looked at: what the current snapshot names stays while that stands."""
        return self._sizes.get(digest, self._lease.named.get(digest))

    def _setting_up(self) -> AbstractContextManager[None]:
        return setting_up(f"save actor {self._lease.actor_id}", SnapshotError)


class StoredSnapshot(Closing, ABC):
    """A stored snapshot that is open; a :class:`ChunkSource`. Its chunks stay as long as it is open."""

    in_memory = False

    def __init__(self, envelope: Envelope) -> None:
        """Raises SnapshotError if the manifest's list of chunks is damaged."""
        self.actor_id, self.manifest = envelope.actor_id, envelope.manifest
        self.algorithm = envelope.algorithm
        """What authenticated it: ``none``, ``HMAC-SHA256`` or ``Ed25519``. Checked only by a store with a key."""
        self.chunks: Final = envelope.chunks
        """Sizes in bytes by digest: what the manifest names."""

    @abstractmethod
    def get(self, digest: str, size: int) -> memoryview:
        """A chunk that the manifest names. Raises SnapshotError if it is not named, missing or damaged.

        Several threads may call this at the same time.
        """

    def get_several(self, chunks: Sequence[tuple[str, int]]) -> list[memoryview]:
        """What :meth:`get` gives for each (digest, size): read and verified on several threads."""
        return each(lambda chunk: self.get(*chunk), chunks, THREADS)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a stored snapshot without opening it."""

    actor_id: str
    saved: float
    """Seconds since 1970."""
    manifest_bytes: int
    """With its header."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a garbage collection did."""

    removed: int
    """Chunks that nothing names."""
    removed_bytes: int
    """What they took in the store."""
    kept: int
    """Chunks that are named, or may be soon."""


class Store(ABC):
    """Snapshots of actors by id, and their chunks. Any thread may use one."""

    @abstractmethod
    def lease(self, actor_id: str) -> Lease:
        """The right to thaw, save and delete an actor, which need not have a snapshot. Raises ActorHeldError."""

    @abstractmethod
    def holder(self, actor_id: str) -> Holder | None:
        """Who has the actor awake; None if nobody."""

    def saving(self, actor_id: str, lease: Lease | None = None) -> Save:
        """Begin to save an actor. Without its lease, one is held for this save; raises ActorHeldError.

        One save at a time with a lease: raises SnapshotError while another is open.
        """
        with ExitStack() as stack, setting_up(f"save actor {checked_id(actor_id)}", SnapshotError):
            used = lease or stack.enter_context(self.lease(actor_id))
            check_lease(used, actor_id)
            save = self._begin(used, None if lease else used)
            stack.pop_all()
            return save

    @abstractmethod
    def load(self, actor_id: str, lease: Lease | None = None) -> StoredSnapshot:
        """Open an actor's snapshot. Whoever thaws it, to go on from there, gives the actor's lease.

        Raises SnapshotError if there is none, it is damaged, or the store's key does not authenticate it.
        """

    def save(self, actor_id: str, manifest: Mapping[str, Any], chunks: ChunkSource, lease: Lease | None = None) -> None:
        """Save a snapshot whose chunks are elsewhere. Raises SnapshotError, ActorHeldError."""
        named = chunks_of(manifest)
        with self.saving(actor_id, lease) as save:
            for digest, size in named.items():
                save.keep(digest, chunks.get(digest, size))
            save.commit(manifest)

    @abstractmethod
    def actors(self) -> list[str]:
        """The actors that have a snapshot, sorted."""

    @abstractmethod
    def entry(self, actor_id: str) -> Entry:
        """What is known of an actor's snapshot. Raises SnapshotError if there is none."""

    def delete(self, actor_id: str, lease: Lease | None = None) -> None:
        """Remove an actor's snapshot; its chunks go with the next collection. Raises SnapshotError, ActorHeldError."""
        with ExitStack() as stack, setting_up(f"delete actor {checked_id(actor_id)}", SnapshotError):
            used = lease or stack.enter_context(self.lease(actor_id))
            check_lease(used, actor_id)
            used.begin_save()
            stack.callback(used.end_save)
            self._remove(actor_id)
            used.named = {}

    @abstractmethod
    def gc(self) -> Collected:
        """Remove chunks that no snapshot names. Raises SnapshotError, and removes none, if a snapshot is damaged."""

    @abstractmethod
    def _begin(self, lease: Lease, own: Lease | None) -> Save:
        """A save of the lease's actor. ``own``: the lease, if it is to be closed with the save."""

    @abstractmethod
    def _remove(self, actor_id: str) -> None:
        """Remove a snapshot, as lastingly as the store can. Raises SnapshotError if there is none."""


def check_lease(lease: Lease, actor_id: str) -> None:
    """Raise SnapshotError unless the lease is that actor's, and held."""
    lease.check()
    if lease.actor_id != actor_id:
        raise SnapshotError(f"the lease is that of actor {lease.actor_id}, not of {actor_id}")


def check_named(chunks: Chunks, digest: str, size: int) -> None:
    """Raise SnapshotError unless a manifest's list of chunks has this one: so nobody gets another actor's."""
    if chunks.get(digest) != size:
        raise SnapshotError(f"the manifest's list of chunks has no {digest} of {size} bytes")


def no_snapshot(actor_id: str) -> NoSnapshotError:
    """The error of an actor that has no snapshot."""
    return NoSnapshotError(
        f"there is no snapshot of actor {actor_id}; `wasmetal actor list` shows those that there are"
    )
