"""Leases of a store on a directory: locked files, so that a lease ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import os

from wasmetal.actor.store import locks
from wasmetal.actor.store.leasing import ActorHeldError, Holder, Lease, held
from wasmetal.forked import Origin


class FileLease(Lease):
    """A lease, held until it is closed."""

    def __init__(self, actor_id: str, path: str) -> None:
        """Raises ActorHeldError if somebody holds it, in this process or another; OSError."""
        super().__init__(actor_id)
        self._path, self._origin = path, Origin(f"the lease of actor {actor_id}")
        self._descriptor: int | None = None
        while self._descriptor is None:
            descriptor = locks.open_lock(path)
            try:
                if not locks.try_lock(descriptor):
                    raise held(actor_id, Holder.from_json(os.pread(descriptor, 4096, 0)))
                # The file that was opened may be one that its last holder has removed meanwhile: then once more.
                if _same(descriptor, path):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, Holder.here().to_json(), 0)
                    self._descriptor, descriptor = descriptor, -1
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def check(self) -> None:
        """Raise ActorHeldError if the lease is closed, ForkedError in a process forked since."""
        self._origin.check()
        if self._descriptor is None:
            raise ActorHeldError(f"the lease of actor {self.actor_id} was closed: take another")

    def close(self) -> None:
        """Let others have the actor. Idempotent."""
        if self._descriptor is None:
            return
        if self._origin.here:
            with contextlib.suppress(OSError):  # the next holder finds it unlocked
                os.unlink(self._path)
                locks.unlock(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None


def holder(path: str) -> Holder | None:
    """Who holds the lease; None if nobody does. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        if not locks.is_locked(descriptor):
            return None
        return Holder.from_json(os.pread(descriptor, 4096, 0)) or Holder(0, "an unknown host", 0.0)
    finally:
        os.close(descriptor)


def _same(descriptor: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
