"""The store at a URL: a shared folder, a bucket, whatever ``fsspec`` reaches.

It has the same objects as a store on a directory, and weaker guarantees, since such file systems have neither locks nor
fsync: docs/snapshot-format.md compares them. Leases run out. A collection goes by age: it removes only what has been
there for long, and a save writes again what it would rely on and has been there for half as long.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any, Final

from wasmetal.actor.store import chunk_bytes, compression, manifest_json, url_leases
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
from wasmetal.actor.store.envelope import HEADER_BYTES, Envelope, seal, unseal
from wasmetal.actor.store.keys import Key
from wasmetal.actor.store.leasing import Holder, Lease
from wasmetal.actor.store.manifest_json import Chunks
from wasmetal.actor.store.names import checked_id, is_digest, is_id
from wasmetal.actor.store.objects import Objects
from wasmetal.actor.store.url_leases import UrlLease
from wasmetal.errors import SnapshotError, setting_up

FORMAT: Final = b"wasmetal-actors-url 1\n"
"""Not that of a directory, whose users keep to other rules."""
_SNAPSHOT: Final = ".snapshot"


class UrlStore(Store):
    """Snapshots under one URL, which several machines may use at once."""

    def __init__(
        self,
        url: str,
        *,
        key: Key | None = None,
        compress: bool = False,
        create: bool = True,
        lease_seconds: float = 60.0,
        keep_seconds: float = 86400.0,
        **options: Any,
    ) -> None:
        """``key``, ``compress`` and ``create`` as for :class:`DirectoryStore`; ``options`` as its file system has.

        ``lease_seconds``: how long a lease holds without being renewed; saving renews it. ``keep_seconds``: for so
        long a chunk stays that nothing names; a save must take less than half of it. Raises SnapshotError if there is
        something else at the URL, or ``fsspec`` or what it needs for it is not installed.
        """
        self.url, self.key, self.compress = url, key, compress
        self.lease_seconds, self.keep_seconds = lease_seconds, keep_seconds
        if compress:
            compression.available()
        self.objects: Final = Objects(url, options)
        with setting_up(f"open the store {url}", SnapshotError):
            try:
                found = self.objects.read("format", 100)
            except FileNotFoundError:
                if not create:
                    raise SnapshotError(f"there is no store of actors at {url}") from None
                self.objects.write("format", found := FORMAT)
        if found != FORMAT:
            raise SnapshotError(f"{url} is not a store at a URL that this version of wasmetal reads")

    def lease(self, actor_id: str) -> UrlLease:
        """See :class:`Store`. It ends after ``lease_seconds`` without ``renew``, or a save."""
        with setting_up(f"take the lease of actor {checked_id(actor_id)}", SnapshotError):
            return UrlLease(actor_id, self.objects, self.lease_seconds)

    def holder(self, actor_id: str) -> Holder | None:
        """See :class:`Store`."""
        with setting_up(f"look at the lease of actor {checked_id(actor_id)}", SnapshotError):
            return url_leases.holder(self.objects, actor_id)

    def load(self, actor_id: str, lease: Lease | None = None) -> UrlSnapshot:
        """See :class:`Store`. Without the lease, its chunks may be collected once it is no longer the actor's."""
        with setting_up(f"load actor {checked_id(actor_id)}", SnapshotError):
            if lease:
                check_lease(lease, actor_id)
            snapshot = UrlSnapshot(self, self.read(actor_id, self.key))
        if lease:
            lease.named = snapshot.chunks
        return snapshot

    def actors(self) -> list[str]:
        """See :class:`Store`."""
        with setting_up(f"list the store {self.url}", SnapshotError):
            names = [name.rpartition("/")[2] for name, _, _ in self.objects.under("actors")]
        return sorted(found for name in names if is_id(found := name.removesuffix(_SNAPSHOT)) and found != name)

    def entry(self, actor_id: str) -> Entry:
        """See :class:`Store`."""
        with setting_up(f"look at actor {checked_id(actor_id)}", SnapshotError):
            try:
                nbytes, changed = self.objects.found(snapshot_name(actor_id))
            except FileNotFoundError:
                raise no_snapshot(actor_id) from None
        return Entry(actor_id, changed, nbytes)

    def gc(self) -> Collected:
        """See :class:`Store`. Removes chunks that are older than ``keep_seconds`` and that nothing names."""
        removed = removed_bytes = kept = 0
        with setting_up(f"collect the store {self.url}", SnapshotError):
            old = time.time() - self.keep_seconds
            chunks = list(self.objects.under("chunks"))
            named = {digest for actor_id in self.actors() for digest in self._named(actor_id)}
            for name, nbytes, changed in chunks:
                digest = name.rpartition("/")[2].removesuffix(compression.SUFFIX)
                # Once more, for a save may have written it again since the chunks were listed.
                if not is_digest(digest) or digest in named or changed > old or self._changed(name) > old:
                    kept += is_digest(digest)
                    continue
                self.objects.remove(name)
                removed, removed_bytes = removed + 1, removed_bytes + nbytes
        return Collected(removed, removed_bytes, kept)

    def _begin(self, lease: Lease, own: Lease | None) -> UrlSave:
        return UrlSave(self, lease, own)

    def _remove(self, actor_id: str) -> None:
        try:
            self.objects.remove(snapshot_name(actor_id))
        except FileNotFoundError:
            raise no_snapshot(actor_id) from None

    def read(self, actor_id: str, key: Key | None) -> Envelope:
        """An actor's manifest. Raises SnapshotError, OSError."""
        most = HEADER_BYTES + manifest_json.MOST
        try:
            data = self.objects.read(snapshot_name(actor_id), most + 1)
        except FileNotFoundError:
            raise no_snapshot(actor_id) from None
        envelope = unseal(io.BytesIO(data).read, len(data), key, actor_id)
        if envelope.nbytes != len(data):
            raise SnapshotError(f"the snapshot of actor {actor_id} is damaged: something follows its manifest")
        return envelope

    def _named(self, actor_id: str) -> Chunks:
        try:
            return self.read(actor_id, None).chunks
        except SnapshotError:
            if self.objects.exists(snapshot_name(actor_id)):
                raise
            return {}  # deleted

    def _changed(self, name: str) -> float:
        try:
            return self.objects.found(name)[1]
        except FileNotFoundError:
            return time.time()  # another collection has removed it


class UrlSave(Save):
    """A save in progress."""

    def __init__(self, store: UrlStore, lease: Lease, own: Lease | None) -> None:
        """``own``: the lease, if it is to be closed with the save. Raises SnapshotError if another is in progress."""
        super().__init__(lease)
        self._store, self._objects, self._own = store, store.objects, own
        lease.begin_save()
        self._closed = False

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """See :class:`Save`. Then the save is closed."""
        named = manifest_json.chunks_of(manifest)
        sealed = seal(self._lease.actor_id, manifest, self._store.key)
        with self._setting_up():
            for digest, size in named.items():
                known = self._known(digest)
                if known is None:  # it is in the store, or this says that it is not; written again if it is old
                    self.keep(digest, read_chunk(self._objects, digest, size))
                elif known != size:
                    raise SnapshotError(f"the manifest gives chunk {digest} {size} bytes; it has {known}")
            if isinstance(self._lease, UrlLease):
                self._lease.renew()
            self._objects.write(snapshot_name(self._lease.actor_id), sealed)
            self._lease.named = named
        self.close()

    def close(self) -> None:
        """Give up what was not committed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._lease.end_save()
        if self._own:
            self._own.close()

    def _write(self, digest: str, view: memoryview) -> None:
        frame = compression.compressed(view) if self._store.compress else None
        name = chunk_name(digest) + (compression.SUFFIX if frame is not None else "")
        self._objects.write(name, bytes(view) if frame is None else frame)

    def _reuse(self, digest: str, size: int) -> bool:
        """Whether the chunk is there, and young enough to be there when this save has ended."""
        suffixes = ("", compression.SUFFIX) if self._store.compress else ("",)
        for suffix in suffixes:
            try:
                found, changed = self._objects.found(chunk_name(digest) + suffix)
            except FileNotFoundError:
                continue
            if (suffix or found == size) and time.time() - changed < self._store.keep_seconds / 2:
                return True
        return False


class UrlSnapshot(StoredSnapshot):
    """A snapshot of a store at a URL, open."""

    def __init__(self, store: UrlStore, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._objects = store.objects

    def get(self, digest: str, size: int) -> memoryview:
        """See :class:`StoredSnapshot`. It is read whole."""
        check_named(self.chunks, digest, size)
        with setting_up(f"read the snapshot of actor {self.actor_id}", SnapshotError):
            return read_chunk(self._objects, digest, size)

    def close(self) -> None:
        """Does nothing: nothing is held."""


def read_chunk(objects: Objects, digest: str, size: int) -> memoryview:
    """A chunk. Raises SnapshotError if it is missing or damaged; OSError."""
    try:
        # Of an empty object no range can be asked for, in a bucket.
        data = objects.read(chunk_name(digest), size + 1) if objects.found(chunk_name(digest))[0] else b""
    except FileNotFoundError:
        try:
            frame = objects.read(chunk_name(digest) + compression.SUFFIX, compression.MOST + 1)
        except FileNotFoundError:
            raise chunk_bytes.missing(digest) from None
        data = compression.decompressed(frame, digest, size)
    if len(data) != size:
        raise chunk_bytes.wrong_size(digest, len(data), size)
    return chunk_bytes.check(data, digest)


def snapshot_name(actor_id: str) -> str:
    """The object of an actor's snapshot."""
    return f"actors/{actor_id}{_SNAPSHOT}"


def chunk_name(digest: str) -> str:
    """The object of a chunk. Compressed, it has ``.zst`` after its name."""
    return f"chunks/{digest[:2]}/{digest}"
