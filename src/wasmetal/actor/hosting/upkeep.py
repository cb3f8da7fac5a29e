"""What a host does from time to time: timers that are due, actors that are idle, leases that run out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from threading import Condition

from wasmetal.actor.hosting.record import timer_of
from wasmetal.actor.hosting.residents import Residents
from wasmetal.actor.hosting.timers import Timers
from wasmetal.actor.store import ActorHeldError, Store, UrlStore
from wasmetal.errors import WasmetalError
from wasmetal.host.threads import HostThread
from wasmetal.memory.trim import trim

log = logging.getLogger("wasmetal.actor")

_LONGEST = 10.0
"""Seconds between two looks: the clock that timers go by may be set."""
_AT_ONCE = 16
"""Snapshots that are read for their timers before anything else is looked at."""
_GIVE_BACK = 30.0
"""Seconds after which freed memory is given back to the system."""
_RENEWALS = 3
"""In the time of a lease."""


class Upkeep:
    """The thread of a host for what nobody has asked for."""

    def __init__(
        self,
        store: Store,
        residents: Residents,
        wake: Callable[[str], None],
        *,
        idle_seconds: float | None,
        collect_seconds: float | None,
        timers: bool,
    ) -> None:
        """``wake``: called with an actor whose timer is due. ``timers``: look for those of actors in the store, too."""
        self._store, self._residents, self._wake, self._idle_seconds = store, residents, wake, idle_seconds
        self._collect_seconds = None if isinstance(store, UrlStore) else collect_seconds
        self._collecting: HostThread | None = None
        self._collected = time.monotonic()
        """When the last collection began."""
        self._changed = Condition()
        """Guards the timers."""
        self._timers = Timers()
        self._unread: Iterator[str] | None = self._stored()
        if not timers:
            self._unread = None
            self._timers.learned()
        self._renewed = self._given_back = time.monotonic()
        self._closed = False
        self._steps = (
            self._read_some,
            self._fire,
            self._renew,
            self._freeze_idle,
            self._collect,
            self._residents.trim,
            self._give_back,
        )
        self._thread = HostThread(self._run)

    def start(self) -> None:
        """Begin. Raises GuestError if the system has no thread."""
        self._thread.start()

    @property
    def timers(self) -> int:
        """How many timers are known of."""
        return len(self._timers)

    @property
    def reading(self) -> bool:
        """Whether snapshots are left to be looked at for their timers."""
        return self._unread is not None

    def set_timer(self, actor_id: str, due: float | None) -> None:
        """An actor's timer is due then, in seconds since 1970; None: it is not set."""
        with self._changed:
            before = self._timers.next
            self._timers.set(actor_id, due)
            if self._timers.next != before:
                self._changed.notify_all()

    def close(self) -> None:
        """End the thread, once it has finished what it is at. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in (self._thread, self._collecting):
            while thread and not thread.wait(1.0):
                pass

    def _run(self) -> None:
        while not self._closed:
            for step in self._steps:
                try:
                    step()
                except WasmetalError as error:
                    log.warning("an actor host cannot keep up: %s", error)
                except Exception:
                    log.exception("an actor host cannot keep up")
            with self._changed:
                if not self._closed:
                    self._changed.wait(self._pause())

    def _pause(self) -> float:
        """Seconds until there is something to do. Called with the lock."""
        if self._unread is not None:
            return 0.001
        pause = _LONGEST
        if self._idle_seconds is not None:
            pause = min(pause, max(self._idle_seconds / 4, 0.01))
        if self._collect_seconds is not None:
            pause = min(pause, max(self._collect_seconds / 4, 0.01))
        if isinstance(self._store, UrlStore):
            pause = min(pause, self._store.lease_seconds / _RENEWALS)
        if (due := self._timers.next) is not None:
            pause = min(pause, max(due - time.time(), 0.0))
        return pause

    def _fire(self) -> None:
        with self._changed:
            due = self._timers.pop(time.time())
        for actor_id in due:
            self._wake(actor_id)

    def _freeze_idle(self) -> None:
        if self._idle_seconds is not None:
            self._residents.idle(time.monotonic() - self._idle_seconds)

    def _renew(self) -> None:
        if not isinstance(self._store, UrlStore):
            return
        if time.monotonic() - self._renewed < self._store.lease_seconds / _RENEWALS:
            return
        self._renewed = time.monotonic()
        for resident in self._residents.all():
            try:
                resident.renew()
            except ActorHeldError as error:
                log.warning("the lease of actor %s was lost: %s", resident.id, error)
            except OSError as error:
                log.warning("the lease of actor %s could not be renewed: %s", resident.id, error)

    def _collect(self) -> None:
        """Remove what no snapshot names, on another thread: it takes a while, and timers do not wait."""
        if self._collect_seconds is None or (self._collecting and not self._collecting.ended):
            return
        if time.monotonic() - self._collected >= self._collect_seconds:
            self._collected = time.monotonic()
            thread = HostThread(self._collect_now)
            thread.start()
            self._collecting = thread

    def _give_back(self) -> None:
        """Give back what is free in the C library's heaps, which actors that come and go leave full of holes."""
        if time.monotonic() - self._given_back >= _GIVE_BACK:
            trim()
            self._given_back = time.monotonic()

    def _collect_now(self) -> None:
        try:
            self._store.gc()
        except Exception as error:
            log.warning("the store of an actor host was not collected: %s", error)

    def _stored(self) -> Iterator[str]:
        yield from self._store.actors()

    def _read_some(self) -> None:
        """Look for timers in snapshots of the store."""
        if self._unread is None:
            return
        for _ in range(_AT_ONCE):
            actor_id = next(self._unread, None)
            if actor_id is None:
                self._unread = None
                with self._changed:
                    self._timers.learned()
                return
            try:
                due = timer_of(self._store, actor_id)
            except WasmetalError as error:
                log.warning("the timer of actor %s is not known: %s", actor_id, error)
                continue
            if due is not None:
                with self._changed:
                    self._timers.learn(actor_id, due)
