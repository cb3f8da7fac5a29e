"""What is done with an actor by a worker that has its turn: handling messages and timers, saving, forking, deleting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from threading import Lock
from typing import Final, Literal

from wasmetal.actor.hosting.actor_type import check_same
from wasmetal.actor.hosting.answered import Answered
from wasmetal.actor.hosting.reply import PendingReply, read_within
from wasmetal.actor.hosting.resident import Resident
from wasmetal.actor.hosting.residents import Residents
from wasmetal.actor.hosting.tasks import Message
from wasmetal.actor.hosting.turns import Turns
from wasmetal.actor.store import Store
from wasmetal.errors import GuestError, LimitError, SnapshotError

Durability = Literal["message", "freeze"]

log = logging.getLogger("wasmetal.actor")

_AGAIN: Final = 60.0
"""Seconds after which a timer whose message has failed is tried again."""


class Handling:
    """The work on actors. Whoever calls a method has the turn of the actor that it names."""

    def __init__(
        self,
        store: Store,
        residents: Residents,
        turns: Turns,
        set_timer: Callable[[str, float | None], None],
        *,
        durability: Durability,
        reply_bytes: int,
        keys: int,
        on_wake: Callable[[str, bytes], object] | None,
    ) -> None:
        """``set_timer``: told when an actor's timer is due. The rest: see :class:`ActorHost`."""
        self._store, self._residents, self._turns, self._set_timer = store, residents, turns, set_timer
        self._durability, self._reply_bytes, self._keys, self._on_wake = durability, reply_bytes, keys, on_wake
        self._lock = Lock()
        """Guards the numbers."""
        self.messages = self.repeated = self.failed = 0

    def handle(self, message: Message) -> None:
        """Handle a message, unless it was handled before. Raises why it failed."""
        try:
            self._handle_once(message)
        except BaseException:
            self.count_failed()
            raise

    def wake(self, actor_id: str) -> None:
        """Give an actor the message that its timer is due, if it is. What goes wrong is logged, and tried again."""
        try:
            resident = self._residents.get(actor_id)
            if not resident:
                if not self._residents.stored(actor_id):
                    return
                resident = self._residents.activate(actor_id, None, create=False)
            due = resident.actor.due
            if due is None or due > time.time():
                self._set_timer(actor_id, due)
                return
            resident.due_frozen = time.time() + _AGAIN  # if this fails
            reply = self._run(resident, resident.actor.wake, PendingReply())
            self._handled(resident)
        except BaseException as error:
            log.warning("actor %s did not handle its timer: %s", actor_id, error)
            self.count_failed()
            self._set_timer(actor_id, time.time() + _AGAIN)
            return
        if self._on_wake:
            self._on_wake(actor_id, reply)

    def create(
        self, actor_id: str, kind: str | None, args: Sequence[str] | None, env: Mapping[str, str] | None
    ) -> None:
        """See :meth:`ActorHost.create`."""
        if self._residents.get(actor_id) or self._residents.stored(actor_id):
            raise _exists(actor_id)
        resident = self._residents.activate(actor_id, kind, True, args, env)
        if resident.saved:  # by another host, a moment ago
            raise _exists(actor_id)
        self._save(resident)

    def freeze(self, actor_id: str) -> None:
        """See :meth:`ActorHost.freeze`."""
        if self._residents.get(actor_id):
            self._residents.freeze(actor_id)

    def fork(self, actor_id: str, new_id: str) -> None:
        """See :meth:`ActorHost.fork`."""
        if not self._turns.try_take(new_id):
            raise _exists(new_id)
        try:
            if self._residents.get(new_id):  # before this waits for a place, which the new one might hold
                raise _exists(new_id)
            original = self._residents.get(actor_id) or self._residents.activate(actor_id, None, create=False)
            self._fork(original, new_id)
        finally:
            self._turns.give_back(new_id)

    def delete(self, actor_id: str) -> None:
        """See :meth:`ActorHost.delete`."""
        resident = self._residents.get(actor_id)
        if not resident or resident.saved:
            self._store.delete(actor_id, resident.lease if resident else None)
        if resident:
            resident.due_frozen = None
            self._residents.drop(actor_id)
        self._set_timer(actor_id, None)

    def count_repeated(self) -> None:
        """A message was not handled, since one with its key was, or is being."""
        with self._lock:
            self.repeated += 1

    def count_failed(self) -> None:
        """A message has failed."""
        with self._lock:
            self.failed += 1

    def _handle_once(self, message: Message) -> None:
        actor_id = message.actor_id
        if message.reply.cancelled:
            raise GuestError("the message was cancelled before it was handled")
        resident = self._residents.get(actor_id) or self._residents.activate(actor_id, message.kind, message.create)
        check_same(resident.kind, message.kind)
        if message.name is not None:
            found = resident.answered.find(message.name, message.digest)
            if found is not None:
                self.count_repeated()
                message.reply.add(found)
                return
        reply = self._run(resident, lambda: resident.actor.send(message.data, message.sender), message.reply)
        if message.name is not None and self._keys:
            resident.answered.add(message.name, message.digest, reply)
        self._handled(resident)

    def _run(self, resident: Resident, begin: Callable[[], Iterator[bytes]], to: PendingReply) -> bytes:
        """Have an actor handle a message to its end; return the reply. If that fails, the actor is dropped."""
        counters, counts = replace(resident.actor.counters), resident.actor.token_counts
        try:
            pieces = begin()
        except BaseException:
            if resident.actor.failure:
                self._residents.drop(resident.id)
            raise
        try:
            to.stopped_by(resident.stop_busy)
            reply, total = read_within(pieces, to, self._reply_bytes)
            if total > self._reply_bytes:
                raise LimitError(f"limit reached: a reply of {self._reply_bytes} bytes")
        except BaseException:
            self._residents.drop(resident.id)
            raise
        finally:
            to.stopped_by(None)
            to.counters = resident.actor.counters - counters
            to.token_counts = resident.actor.token_counts - counts
        resident.dirty = True
        return reply

    def _handled(self, resident: Resident) -> None:
        """A message was handled: save it, if it is to be. Raises SnapshotError if that fails; the actor is dropped."""
        resident.measure()
        if self._durability == "message":
            self._save(resident)
        self._set_timer(resident.id, resident.actor.due)
        with self._lock:
            self.messages += 1
        try:
            self._residents.trim(resident.id)
        except SnapshotError as error:  # of an actor that stays as it is
            log.warning("%s", error)

    def _save(self, resident: Resident) -> None:
        """Save an actor; one that cannot be saved goes back to its last snapshot, since nobody was told of the rest."""
        try:
            resident.save()
        except BaseException:
            self._residents.drop(resident.id)
            raise

    def _fork(self, original: Resident, new_id: str) -> None:
        """Fork an actor. The worker has both turns."""
        with ExitStack() as stack:
            lease = stack.enter_context(self._store.lease(new_id))
            if self._residents.stored(new_id):
                raise _exists(new_id)
            fork = stack.enter_context(original.actor.fork(new_id))
            resident = Resident(self._store, lease, fork, original.kind, Answered(self._keys))
            resident.save()
            stack.pop_all()
        self._set_timer(new_id, resident.due_frozen)
        self._residents.adopt(resident)


def _exists(actor_id: str) -> SnapshotError:
    return SnapshotError(f"there is an actor {actor_id} already: choose another id, or delete it")
