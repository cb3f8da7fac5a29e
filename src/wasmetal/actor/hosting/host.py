"""Many actors on one machine: awake while they have messages, and in a store otherwise."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar
from weakref import WeakSet

import numpy as np

from wasmetal.actor.hosting.actor_type import ActorType, ActorTypes
from wasmetal.actor.hosting.answered import MOST_KEYS
from wasmetal.actor.hosting.handling import Durability, Handling
from wasmetal.actor.hosting.record import timer_of
from wasmetal.actor.hosting.reply import PendingReply
from wasmetal.actor.hosting.resident import Resident
from wasmetal.actor.hosting.residents import Residents
from wasmetal.actor.hosting.stats import HostStats
from wasmetal.actor.hosting.tasks import Call, Message, Wake
from wasmetal.actor.hosting.turns import Turns, closed
from wasmetal.actor.hosting.under_way import UnderWay
from wasmetal.actor.hosting.upkeep import Upkeep
from wasmetal.actor.store import Store, checked_id
from wasmetal.closing import Closing
from wasmetal.device import Device
from wasmetal.errors import GuestError, SnapshotError, printable
from wasmetal.forked import Origin

T = TypeVar("T")

log = logging.getLogger("wasmetal.actor")

_KEY: Final = 256
"""Bytes of a key."""
_SENDER: Final = 4096
"""Bytes of a sender's name."""
_PATIENCE: Final = 10.0
"""Seconds that stopped messages get to end when a host is closed. Only a long kernel on the CPU device takes longer."""


class ActorHost(Closing):
    """Actors by id, any number of them, of which a few are awake. Use it as a context manager, or call :meth:`close`.

    ::

        types = {"chat": wasmetal.ActorType(program="guests/chat.wasm", models={"default": "smollm2:135m"})}
        with wasmetal.ActorHost(DirectoryStore("actors"), types, resident=32) as host:
            print(host.send("ann", "Why is the sky blue?").read().decode())

    An actor is woken by its first message, and frozen when it has been idle or others need its place. Each handles one
    message at a time, in the order in which they were sent; actors that have messages take turns. A message that fails
    ends its actor alone, whose last snapshot stands: the next message wakes that. Any thread may use a host.
    """

    def __init__(
        self,
        store: Store,
        types: ActorType | Mapping[str, ActorType],
        *,
        device: str | Device | None = None,
        loading: Mapping[str, Any] | None = None,
        durability: Durability = "message",
        resident: int = 32,
        memory_bytes: int | None = None,
        device_bytes: int | None = None,
        idle_seconds: float | None = 300.0,
        collect_seconds: float | None = 3600.0,
        workers: int = 8,
        queue: int = 64,
        queued_bytes: int = 256 << 20,
        message_bytes: int = 16 << 20,
        reply_bytes: int = 16 << 20,
        keys: int = 64,
        timers: bool = True,
        on_wake: Callable[[str, bytes], object] | None = None,
    ) -> None:
        """``types``: what actors are made of, by name; one without a name is called "default".

        ``device``: as for :class:`Guest`; all actors share it. ``loading``: options of :func:`load_model` for the
        models, each of which is loaded once.
        ``durability``: when a message counts as handled, so that its reply ends. "message": once what it has changed is
        in the store; a crash loses nothing that was replied to. "freeze": at once; it gets to the store when the actor
        is frozen, and a crash, of the actor or the host, loses what it has handled since.
        ``resident``: actors that may be awake. ``memory_bytes``, ``device_bytes``: linear memory and device memory of
        all that are awake; beyond it those that are idle are frozen. An actor that handles a message is never frozen.
        ``idle_seconds``: after which an idle actor is frozen; None: only when others need its place.
        ``collect_seconds``: after which the store is collected, once more and again, so that it does not fill up with
        what actors were before; None: never. Stores at URLs are not: see :meth:`UrlStore.gc`.
        ``workers``: messages that are handled at a time, at most ``resident``. ``queue``: messages that may wait for
        one actor; ``queued_bytes``: that may wait in all, each counted with 1 KiB more.
        ``message_bytes``, ``reply_bytes``: of one message, of one reply.
        ``keys``: messages with a key that are remembered of each actor.
        ``timers``: whether to wake actors that have been frozen; the timers of those in the store are found by reading
        all snapshots once, in the background. ``on_wake``: called with an actor's id and its reply once it has handled
        the message that its timer is due, on a worker's thread, where it must not wait for this host.

        Raises what :class:`ActorProgram`, :func:`open_device` and :func:`load_model` do, and GuestError for numbers
        that make no sense.
        """
        if durability not in ("message", "freeze"):
            raise GuestError(f"durability is {durability!r}; it must be 'message' or 'freeze'")
        for name, value in (("resident", resident), ("workers", workers), ("queue", queue)):
            if value < 1:
                raise GuestError(f"{name} is {value}; it must be 1 or more")
        if not 0 <= keys <= MOST_KEYS:
            raise GuestError(f"keys is {keys}; it must be from 0 to {MOST_KEYS}")
        self.store: Final = store
        self._message_bytes = message_bytes
        self._origin = Origin("the actor host")
        self._under_way = UnderWay()
        self._closed = False
        self._types = ActorTypes(types, device, loading or {})
        try:
            self._turns = Turns(min(workers, resident), queue, queued_bytes)
            self._residents = Residents(
                store,
                self._types,
                self._turns,
                most=resident,
                memory_bytes=memory_bytes,
                device_bytes=device_bytes,
                keys=keys,
                frozen=self._left,
            )
            self._upkeep = Upkeep(
                store,
                self._residents,
                self._due,
                idle_seconds=idle_seconds,
                collect_seconds=collect_seconds,
                timers=timers,
            )
            self._handling = Handling(
                store,
                self._residents,
                self._turns,
                self._upkeep.set_timer,
                durability=durability,
                reply_bytes=reply_bytes,
                keys=keys,
                on_wake=on_wake,
            )
            self._upkeep.start()
        except BaseException:
            self._types.close()
            raise
        _open.add(self)

    # ---- Messages

    def send(
        self,
        actor_id: str,
        message: bytes | str,
        *,
        sender: str = "",
        key: str | None = None,
        type: str | None = None,
        create: bool = True,
        wait: float = 0.0,
    ) -> PendingReply:
        """Send a message; return the reply, which can be read as it is made.

        ``sender``: what the actor is told of who has sent it. ``key``: a text of 1 to 256 bytes that the sender gives
        to this message alone. If it is sent again with the same key, because it is not known what has become of it, it
        is not handled again: the reply is that of the first time. That holds among the last ``keys`` messages with a
        key that the actor has handled, of all senders together, as far as a crash has not undone them.
        ``type``: the actor's, if it is new and the host has several. ``create``: whether to make an actor that is not
        there. ``wait``: seconds to wait for room in the queues.

        Raises ActorBusyError if there is no room, SnapshotError for what cannot be an actor's id, and GuestError for
        what cannot be a message, a sender or a key, and if the host is closed. The reply raises what goes wrong later.
        """
        self._origin.check()
        checked_id(actor_id)
        self._types.check(type)
        data = message.encode() if isinstance(message, str) else bytes(message)
        if len(data) > self._message_bytes:
            raise GuestError(f"a message of {len(data)} bytes; at most {self._message_bytes} are taken")
        _check_text("sender", sender, 0, _SENDER)
        if key is not None:
            _check_text("key", key, 1, _KEY)
        sent = Message.of(actor_id, data, sender, key, type, create, self._handling.handle, self._under_way.remove)
        if before := self._under_way.add(sent):
            self._handling.count_repeated()
            return before
        try:
            self._turns.put(actor_id, sent, wait)
        except BaseException as error:
            sent.fail(error)  # for who has sent it again meanwhile
            raise
        return sent.reply

    # ---- Actors

    def create(
        self,
        actor_id: str,
        type: str | None = None,
        *,
        args: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Make an actor, and save it. ``args``, ``env``: in place of its type's.

        Raises SnapshotError if there is one of that id, and what :class:`Actor` and :meth:`send` raise.
        """
        self._types.check(type)
        self._call(actor_id, lambda: self._handling.create(actor_id, type, args, env))

    def freeze(self, actor_id: str) -> None:
        """Send an actor back to the store, once it has handled what was sent before. If it is not awake here, nothing.

        Raises SnapshotError if it cannot be frozen, and goes back to its last snapshot, or the store cannot take it,
        and it stays awake; ActorBusyError.
        """
        self._call(actor_id, lambda: self._handling.freeze(actor_id))

    def fork(self, actor_id: str, new_id: str) -> None:
        """Make a new actor in the state that this one has once it has handled what was sent before.

        It is saved at once, and awake if there is a place. It shares pages of the KV cache with its original as long as
        both are awake, and has a random generator of its own, and no keys.

        Raises SnapshotError if there is no such actor, there is one of the new id, or it cannot be frozen; what
        :meth:`Actor.fork` raises; ActorBusyError.
        """
        checked_id(new_id)
        self._call(actor_id, lambda: self._handling.fork(actor_id, new_id))

    def delete(self, actor_id: str) -> None:
        """Remove an actor and its snapshot, once it has handled what was sent before.

        Raises SnapshotError if there is none, ActorHeldError if it is awake elsewhere; ActorBusyError.
        """
        self._call(actor_id, lambda: self._handling.delete(actor_id))

    def watch(self, actor_id: str) -> None:
        """Wake an actor of the store when its timer is due, as if it had been awake here before.

        For hosts that are made with ``timers=False``, since others have the same store. Raises SnapshotError if the
        snapshot cannot be read; without one nothing happens.
        """
        if actor_id in self.resident() or not self._residents.stored(actor_id):
            return
        self._upkeep.set_timer(actor_id, timer_of(self.store, actor_id))

    def unwatch(self, actor_id: str) -> None:
        """Do not wake an actor by its timer, unless it handles another message here."""
        self._upkeep.set_timer(actor_id, None)

    def actors(self) -> list[str]:
        """All actors, sorted: those in the store, and those that are awake here and not saved yet."""
        return sorted({*self.store.actors(), *self.resident()})

    def resident(self) -> list[str]:
        """The actors that are awake here, the least recently used first."""
        return [each.id for each in self._residents.all()]

    def stats(self) -> HostStats:
        """What the host does, and has done."""
        residents, handling, there = self._residents, self._handling, self._residents.all()
        seconds = list(residents.seconds) or [0.0]
        p50, p99 = np.percentile(seconds, [50, 99])
        return HostStats(
            resident=len(there),
            busy=self._turns.busy,
            queued=self._turns.queued,
            timers=self._upkeep.timers,
            reading_timers=self._upkeep.reading,
            messages=handling.messages,
            repeated=handling.repeated,
            failed=handling.failed,
            created=residents.created,
            thawed=residents.thawed,
            frozen=residents.freezes,
            lost=residents.lost,
            memory_bytes=sum(each.memory_bytes for each in there),
            device_bytes=sum(each.device_bytes for each in there),
            activation_p50=float(p50),
            activation_p99=float(p99),
        )

    def close(self, seconds: float = 10.0) -> None:
        """Take no more messages, fail those that wait, and freeze all actors. Idempotent.

        ``seconds``: that messages which are being handled get to end; then they are stopped, and their actors' last
        snapshots stand. Raises SnapshotError if an actor could not be frozen, once all others are.
        """
        if self._closed or not self._origin.here:
            return
        self._closed = True
        _open.discard(self)
        self._turns.close(closed())
        self._residents.close()
        if not self._turns.join(seconds):
            for resident in self._residents.all():
                resident.stop_busy()
            self._turns.join(_PATIENCE)
        self._upkeep.close()
        refused = list(self._freeze_all())
        self._types.close()
        if refused:
            raise SnapshotError(f"{len(refused)} actors could not be frozen: {refused[0]}")

    # ---- Helpers

    def _left(self, resident: Resident) -> None:
        """A resident leaves: from now on its timer is that of its snapshot."""
        self._upkeep.set_timer(resident.id, resident.due_frozen)

    def _due(self, actor_id: str) -> None:
        """An actor's timer may be due. Called on the upkeep's thread."""
        with suppress(GuestError):  # the host is closed
            self._turns.put(actor_id, Wake(lambda: self._handling.wake(actor_id)), bounded=False)

    def _call(self, actor_id: str, function: Callable[[], T]) -> T:
        """Do something in an actor's turn, and wait for it."""
        self._origin.check()
        call = Call(function)
        self._turns.put(checked_id(actor_id), call)
        return call.result.result()

    def _freeze_all(self) -> Iterator[str]:
        """Freeze all residents, once nobody has a turn any more; the errors."""
        for resident in self._residents.all():
            try:
                self._residents.freeze(resident.id)
            except BaseException as error:
                log.warning("actor %s could not be frozen: %s", resident.id, error)
                yield f"{resident.id}: {error}"
                if resident.id in self.resident():
                    self._residents.drop(resident.id)


def _check_text(what: str, value: str, least: int, most: int) -> None:
    try:
        fits = least <= len(value.encode()) <= most
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise GuestError(f"a message's {what} is a text of {least} to {most} bytes, not {printable(repr(value)[:100])}")


_open: WeakSet[ActorHost] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close hosts while Python still runs, and their guests are not closed yet."""
    for host in list(_open):
        with suppress(SnapshotError):  # it was logged
            host.close(1.0)
