"""An actor that is awake in a host: with its lease, and what of it is not saved yet."""

from __future__ import annotations

import threading

from wasmetal.actor.actor import Actor
from wasmetal.actor.hosting.answered import Answered
from wasmetal.actor.hosting.record import Record
from wasmetal.actor.store import ActorHeldError, Lease, Store
from wasmetal.actor.store.url_leases import UrlLease
from wasmetal.closing import Closing
from wasmetal.errors import SnapshotError


class UnfreezableError(SnapshotError):
    """The actor holds something that cannot be frozen."""


class Resident(Closing):
    """An actor that is awake. Used by whoever has the actor's turn, but for ``renew`` and ``stop_busy``."""

    def __init__(self, store: Store, lease: Lease, actor: Actor, kind: str, answered: Answered) -> None:
        self.lease, self.actor, self.kind, self.answered = lease, actor, kind, answered
        self._store = store
        self._lock = threading.Lock()
        self._closed = False
        self.dirty = True
        """Whether something has changed since it was saved."""
        self.saved = False
        """Whether the store has a snapshot of it."""
        self.due_frozen: float | None = None
        """When to wake it once it is frozen: when the timer of that snapshot is due."""
        self.memory_bytes = self.device_bytes = 0
        self.measure()

    @property
    def id(self) -> str:
        """Under which the store has it."""
        return self.lease.actor_id

    def measure(self) -> None:
        """See what it takes now."""
        self.memory_bytes, self.device_bytes = self.actor.memory_bytes, self.actor.device_bytes

    def was_saved(self) -> None:
        """The store has it as it is."""
        self.dirty, self.saved, self.due_frozen = False, True, self.actor.due

    def save(self) -> None:
        """Save it, if something has changed.

        Raises UnfreezableError if that is the actor's own doing, ActorHeldError if the lease was lost, SnapshotError
        if the store cannot take it.
        """
        if not self.dirty:
            return
        with self._store.saving(self.id, self.lease) as saving:
            try:
                manifest = self.actor.freeze_into(saving)
            except ActorHeldError:
                raise
            except SnapshotError as error:
                if isinstance(error.__cause__, OSError):  # the store's
                    raise
                raise UnfreezableError(str(error)) from error
            saving.commit(Record(self.kind, self.answered).beside(manifest))
        self.was_saved()

    def renew(self) -> None:
        """Keep a lease that runs out. From any thread. Raises ActorHeldError if it was lost, OSError."""
        with self._lock:
            if not self._closed and isinstance(self.lease, UrlLease):
                self.lease.renew()

    def stop_busy(self) -> None:
        """Stop it if it handles a message. From any thread."""
        with self._lock:
            if not self._closed and self.actor.busy:
                self.actor.stop()

    def close(self) -> None:
        """Release the actor, and its lease. What is not saved is lost. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self.actor.close()
        finally:
            self.lease.close()
