"""The store on a directory of this machine.

A save writes chunks, waits until they are on the disk, gives them their names, waits until the names are, and only then
replaces the snapshot's file. So at every moment the actor has its old snapshot or its new one, whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from wasmetal.actor.store import chunk_bytes, compression, leases, manifest_json
from wasmetal.actor.store.base import (
    Collected,
    Entry,
    Save,
    Store,
    StoredSnapshot,
    check_lease,
    check_named,
    no_snapshot,
)
from wasmetal.actor.store.collecting import collect
from wasmetal.actor.store.envelope import Envelope, seal, unseal
from wasmetal.actor.store.keys import Key
from wasmetal.actor.store.layout import Layout
from wasmetal.actor.store.leasing import Holder, Lease
from wasmetal.actor.store.names import checked_id
from wasmetal.actor.store.pins import Pins
from wasmetal.actor.store.system import Files
from wasmetal.actor.store.verified import Verified
from wasmetal.errors import SnapshotError, setting_up

_AT_ONCE: Final = 32
"""Chunks of a save that are open before they are synced together: that takes the disk less time than one by one."""


class DirectoryStore(Store):
    """Snapshots under one folder, which several processes of a machine may use at once."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: Key | None = None,
        compress: bool = False,
        create: bool = True,
        verify_once: bool = False,
        files: Files | None = None,
    ) -> None:
        """``key``: snapshots are signed with it, and refused if it does not authenticate them.

        ``compress``: chunks of up to 1 MiB are compressed with zstd where that saves a tenth; larger ones are mapped.
        ``create``: make the store if there is none. ``verify_once``: this process does not compute the digests of
        large chunks again whose files have not changed since it did; what goes wrong on the disk meanwhile, without a
        change, is not noticed. ``files``: what changes the file system.
        Raises SnapshotError if there is no store, it is of another version, or the folder has something else.
        """
        self.layout: Final = Layout(Path(path))
        self.key, self.compress = key, compress
        self.files = files or Files()
        self.verified = Verified() if verify_once else None
        if compress:
            compression.available()
        with setting_up(f"open the store {path}", SnapshotError):
            if create:
                self.layout.make(self.files)
            elif not self.layout.exists():
                raise SnapshotError(f"there is no store of actors at {path}")

    def lease(self, actor_id: str) -> leases.FileLease:
        """See :class:`Store`. The lease ends with this process; a child that it forks keeps it too."""
        with setting_up(f"take the lease of actor {checked_id(actor_id)}", SnapshotError):
            return leases.FileLease(actor_id, self.layout.lease(actor_id))

    def holder(self, actor_id: str) -> Holder | None:
        """See :class:`Store`."""
        with setting_up(f"look at the lease of actor {checked_id(actor_id)}", SnapshotError):
            return leases.holder(self.layout.lease(actor_id))

    def load(self, actor_id: str, lease: Lease | None = None) -> DirectorySnapshot:
        """See :class:`Store`."""
        if lease:
            check_lease(lease, checked_id(actor_id))
        with ExitStack() as stack, setting_up(f"load actor {checked_id(actor_id)}", SnapshotError):
            pins = stack.enter_context(Pins(self.layout, self.files))
            with pins.shared():
                snapshot = DirectorySnapshot(self, self._read(actor_id, self.key), pins)
                pins.add(snapshot.chunks)
            if lease:
                lease.named = snapshot.chunks
            stack.pop_all()
            return snapshot

    def actors(self) -> list[str]:
        """See :class:`Store`."""
        with setting_up(f"list the store {self.layout.root}", SnapshotError):
            return self.layout.actor_ids()

    def entry(self, actor_id: str) -> Entry:
        """See :class:`Store`."""
        with setting_up(f"look at actor {checked_id(actor_id)}", SnapshotError), _there(actor_id):
            found = os.stat(self.layout.snapshot(actor_id))
        return Entry(actor_id, found.st_mtime, found.st_size)

    def gc(self) -> Collected:
        """See :class:`Store`. Safe beside saves, loads and collections of other processes."""
        with setting_up(f"collect the store {self.layout.root}", SnapshotError):
            return collect(self.layout, self.files, lambda actor_id: self._read(actor_id, None).chunks)

    def _begin(self, lease: Lease, own: Lease | None) -> DirectorySave:
        return DirectorySave(self, lease, own)

    def _remove(self, actor_id: str) -> None:
        path = self.layout.snapshot(actor_id)
        with _there(actor_id):
            os.stat(path)
        self.files.remove(path)
        self.files.sync_folder(self.layout.actors)

    def _read(self, actor_id: str, key: Key | None) -> Envelope:
        with _there(actor_id):
            descriptor = os.open(self.layout.snapshot(actor_id), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            envelope = unseal(file.read, size, key, actor_id)
        if envelope.nbytes != size:
            raise SnapshotError(f"the snapshot of actor {actor_id} is damaged: something follows its manifest")
        return envelope


class DirectorySave(Save):
    """A save in progress."""

    def __init__(self, store: DirectoryStore, lease: Lease, own: Lease | None) -> None:
        """``own``: the lease, if it is to be closed with the save. Raises OSError."""
        super().__init__(lease)
        self._store, self._layout, self._files, self._own = store, store.layout, store.files, own
        lease.begin_save()
        try:
            self._pins = Pins(self._layout, self._files)
        except BaseException:
            lease.end_save()
            raise
        self._closed = False
        self._open: list[tuple[int, str, str]] = []
        self._folders: set[str] = set()
        self._sealed: str | None = None

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """See :class:`Save`. Then the save is closed."""
        actor_id = self._lease.actor_id
        self._lease.check()
        named = manifest_json.chunks_of(manifest)
        sealed = seal(actor_id, manifest, self._store.key)
        with setting_up(f"save actor {actor_id}", SnapshotError):
            for digest, size in named.items():
                self._require(digest, size)
            self._flush()
            folders = sorted(self._folders)
            if folders:  # any of which this save, or another at the same time, may have made
                folders.append(str(self._layout.chunks))
            self._sealed = self._pins.part()
            self._files.write_file(self._sealed, sealed, folders)
            self._files.rename(self._sealed, self._layout.snapshot(actor_id))
            self._lease.named = {}  # until the new one is known to be on the disk
            self._files.sync_folder(self._layout.actors)
            self._lease.named = named
        self.close()

    def close(self) -> None:
        """Give up what was not committed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for descriptor, part, _ in self._open:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(part)
        self._open.clear()
        if self._sealed:
            with suppress(FileNotFoundError):
                os.unlink(self._sealed)
        self._pins.close()
        self._lease.end_save()
        if self._own:
            self._own.close()

    def _require(self, digest: str, size: int) -> None:
        """Raise SnapshotError unless a chunk that the manifest names will be there."""
        known = self._known(digest)
        if known is None:
            self._pin(digest)
            path, compressed = self._layout.chunk(digest), self._layout.compressed(digest)
            if os.path.exists(path):
                chunk_bytes.read_file(path, digest, size)
            elif os.path.exists(compressed):
                chunk_bytes.read_compressed(compressed, digest, size)
            else:
                raise SnapshotError(f"the manifest names chunk {digest}, which is not in the store: put it first")
            self._folders.add(os.path.dirname(path))
        elif known != size:
            raise SnapshotError(f"the manifest gives chunk {digest} {size} bytes; it has {known}")

    def _pin(self, digest: str) -> None:
        with self._pins.shared():
            self._pins.add([digest])

    def _reuse(self, digest: str, size: int) -> bool:
        """Whether the chunk is there, undamaged. Its name need not be on the disk yet: another save may be at it."""
        self._pin(digest)
        path, compressed = self._layout.chunk(digest), self._layout.compressed(digest)
        try:
            if os.path.exists(path):
                chunk_bytes.read_file(path, digest, size, self._store.verified)
            elif self._store.compress and os.path.exists(compressed):
                chunk_bytes.read_compressed(compressed, digest, size)
            else:
                return False
        except (SnapshotError, FileNotFoundError):
            return False
        self._folders.add(os.path.dirname(path))
        return True

    def _write(self, digest: str, view: memoryview) -> None:
        frame = compression.compressed(view) if self._store.compress else None
        part = self._pins.part()
        target = self._layout.chunk(digest) if frame is None else self._layout.compressed(digest)
        if not os.path.exists(folder := os.path.dirname(target)):
            self._files.make_folder(folder)
        descriptor = self._files.create(part)
        self._open.append((descriptor, part, target))
        self._files.write(descriptor, view if frame is None else memoryview(frame))
        if len(self._open) >= _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        """Bring what was written to the disk, then give it its names."""
        self._files.sync_all([descriptor for descriptor, _, _ in self._open], [])
        while self._open:
            descriptor, part, target = self._open[-1]
            self._files.rename(part, target)
            self._folders.add(os.path.dirname(target))
            os.close(descriptor)
            self._open.pop()


class DirectorySnapshot(StoredSnapshot):
    """A snapshot of a store on a directory, open."""

    def __init__(self, store: DirectoryStore, envelope: Envelope, pins: Pins) -> None:
        super().__init__(envelope)
        self._layout, self._verified, self._pins = store.layout, store.verified, pins

    def get(self, digest: str, size: int) -> memoryview:
        """See :class:`StoredSnapshot`. From 64 KiB on, uncompressed, it is the mapped file, read when it is touched."""
        check_named(self.chunks, digest, size)
        with setting_up(f"read the snapshot of actor {self.actor_id}", SnapshotError):
            try:
                return chunk_bytes.read_file(self._layout.chunk(digest), digest, size, self._verified)
            except FileNotFoundError:
                pass
            try:
                return chunk_bytes.read_compressed(self._layout.compressed(digest), digest, size)
            except FileNotFoundError:
                raise chunk_bytes.missing(digest) from None

    def close(self) -> None:
        """Let the chunks be collected, unless a snapshot names them. What was mapped stays mapped. Idempotent."""
        self._pins.close()


@contextmanager
def _there(actor_id: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise no_snapshot(actor_id) from None
