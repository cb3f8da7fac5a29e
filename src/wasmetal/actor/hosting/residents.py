"""The actors that are awake: brought here from the store, and sent back to it when others need their place."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from threading import Condition

from wasmetal.actor.actor import Snapshot
from wasmetal.actor.hosting.actor_type import ActorTypes
from wasmetal.actor.hosting.answered import Answered
from wasmetal.actor.hosting.record import split
from wasmetal.actor.hosting.resident import Resident, UnfreezableError
from wasmetal.actor.hosting.turns import Turns, closed
from wasmetal.actor.store import ActorHeldError, Lease, Store
from wasmetal.actor.store.base import no_snapshot
from wasmetal.errors import NoSnapshotError, OutOfDeviceMemoryError, SnapshotError

log = logging.getLogger("wasmetal.actor")

_LOOK = 0.01
"""Seconds of waiting for a place between two looks at whose turn has ended."""
_MEASURED = 10_000
"""Activations whose times are kept."""


class Residents:
    """The residents of a host, by id, the least recently used first.

    Whoever activates, changes or removes one has its turn. Whoever waits for a place has no resident meanwhile, so
    there is always one to be had, if not now then when a message has been handled.
    """

    def __init__(
        self,
        store: Store,
        types: ActorTypes,
        turns: Turns,
        *,
        most: int,
        memory_bytes: int | None,
        device_bytes: int | None,
        keys: int,
        frozen: Callable[[Resident], None],
    ) -> None:
        """``frozen``: called with each that leaves, before it is closed."""
        self._store, self._types, self._turns = store, types, turns
        self._most, self._memory_bytes, self._device_bytes, self._keys = most, memory_bytes, device_bytes, keys
        self._frozen = frozen
        self._changed = Condition()
        """Guards what follows."""
        self._there: OrderedDict[str, Resident] = OrderedDict()
        self._used: dict[str, float] = {}
        """When each was used last, by ``time.monotonic``."""
        self._places = 0
        """Taken, also by actors that are on their way."""
        self._closed = False
        self.created = self.thawed = self.freezes = self.lost = 0
        self.seconds: deque[float] = deque(maxlen=_MEASURED)
        """That the last activations took."""

    def get(self, actor_id: str) -> Resident | None:
        """A resident, which counts as used now; None if the actor is not awake here."""
        with self._changed:
            if found := self._there.get(actor_id):
                self._there.move_to_end(actor_id)
                self._used[actor_id] = time.monotonic()
            return found

    def all(self) -> list[Resident]:
        """Those that there are, the least recently used first."""
        with self._changed:
            return list(self._there.values())

    def activate(
        self,
        actor_id: str,
        kind: str | None,
        create: bool,
        args: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Resident:
        """Wake an actor that is not awake here. The caller has its turn, and no other resident's.

        Raises ActorHeldError if it is awake elsewhere, SnapshotError if there is none and ``create`` is not set, or
        its snapshot is damaged; what :class:`Actor` raises; and why no other actor could be frozen.
        """
        begun = time.perf_counter()
        self._take_place()
        try:
            with ExitStack() as stack:
                lease = stack.enter_context(self._store.lease(actor_id))
                while True:
                    try:
                        resident = self._wake(lease, kind, create, args, env)
                        break
                    except OutOfDeviceMemoryError:
                        if not self._free_one():
                            raise
                stack.pop_all()
        except BaseException:
            self._give_place()
            raise
        self._enter(resident)
        with self._changed:
            if resident.saved:
                self.thawed += 1
            else:
                self.created += 1
        self.seconds.append(time.perf_counter() - begun)
        return resident

    def adopt(self, resident: Resident) -> None:
        """Keep a new resident if there is a place for it at once; close it otherwise."""
        with self._changed:
            if there_is := self._places < self._most and not self._closed:
                self._places += 1
        if there_is:
            self._enter(resident)
        else:
            resident.close()

    def freeze(self, actor_id: str) -> None:
        """Save and close a resident. One that cannot be frozen is closed too: its last snapshot stands.

        The caller has its turn. Raises UnfreezableError then, and SnapshotError, with the actor still there, if the
        store cannot take it.
        """
        resident = self._there[actor_id]
        try:
            resident.save()
        except (UnfreezableError, ActorHeldError):
            self.drop(actor_id)
            with self._changed:
                self.lost += 1
            raise
        self.drop(actor_id)
        with self._changed:
            self.freezes += 1

    def drop(self, actor_id: str) -> None:
        """Close a resident. What was not saved is lost. The caller has its turn."""
        with self._changed:
            resident = self._there.pop(actor_id, None)
            if resident is None:
                return
            del self._used[actor_id]
        try:
            self._frozen(resident)
        finally:
            try:
                resident.close()
            finally:
                self._give_place()

    def trim(self, own: str | None = None) -> None:
        """Freeze idle ones, the least recently used first, while all take more memory than they may.

        ``own``: an actor whose turn the caller has, to be frozen if nothing else is left, and no message waits for it.
        Raises SnapshotError if the store can take none of them.
        """
        while self._too_much():
            if self._free_one(waiting=False):
                continue
            if own is not None and own in self._there and not self._turns.waits(own):
                self._freeze_or_end(own)
            return

    def idle(self, since: float) -> None:
        """Freeze those that were not used since a time of ``time.monotonic``."""
        with self._changed:
            found = [actor_id for actor_id in self._there if self._used[actor_id] < since]
        for actor_id in found:
            self._try_freeze(actor_id, waiting=False)

    def close(self) -> None:
        """Let nobody wait for a place any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stored(self, actor_id: str) -> bool:
        """Whether the store has a snapshot of an actor. Raises SnapshotError if that cannot be known."""
        try:
            self._store.entry(actor_id)
        except NoSnapshotError:
            return False
        return True

    def _wake(
        self,
        lease: Lease,
        kind: str | None,
        create: bool,
        args: Sequence[str] | None,
        env: Mapping[str, str] | None,
    ) -> Resident:
        actor_id = lease.actor_id
        if not self.stored(actor_id):
            if not create:
                raise no_snapshot(actor_id)
            made, answered, stored = self._types.make(actor_id, kind, args, env), Answered(self._keys), False
        else:
            with self._store.load(actor_id, lease) as snapshot:
                manifest, record = split(snapshot.manifest, self._keys)
                made = self._types.thaw(Snapshot(manifest, snapshot), record.kind if record else None, kind)
            answered, stored = record.answered if record else Answered(self._keys), True
        try:
            resident = Resident(self._store, lease, made.actor, made.kind, answered)
        except BaseException:
            made.actor.close()
            raise
        if stored:
            resident.was_saved()
        return resident

    def _enter(self, resident: Resident) -> None:
        with self._changed:
            self._there[resident.id] = resident
            self._used[resident.id] = time.monotonic()

    def _take_place(self) -> None:
        """Wait for a place, sending the least recently used back for it."""
        while True:
            with self._changed:
                if self._closed:
                    raise closed()
                if self._places < self._most:
                    self._places += 1
                    return
            if not self._free_one():
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._places < self._most, _LOOK)

    def _give_place(self) -> None:
        with self._changed:
            self._places -= 1
            self._changed.notify_all()

    def _too_much(self) -> bool:
        found = self.all()
        return _over(self._memory_bytes, (each.memory_bytes for each in found)) or _over(
            self._device_bytes, (each.device_bytes for each in found)
        )

    def _free_one(self, waiting: bool = True) -> bool:
        """Freeze the least recently used that nobody is at; False if there is none.

        Rather one for which no message waits; ``waiting``: or another. Raises SnapshotError if the store can take none.
        """
        error: SnapshotError | None = None
        for also_waiting in (False, True)[: 1 + waiting]:
            for resident in self.all():
                try:
                    if self._try_freeze(resident.id, also_waiting):
                        return True
                except SnapshotError as refused:
                    error = refused
        if error:
            raise error
        return False

    def _try_freeze(self, actor_id: str, waiting: bool) -> bool:
        """Freeze an actor if nobody has its turn. Raises SnapshotError if the store cannot take it."""
        if not self._turns.try_take(actor_id, waiting):
            return False
        try:
            if actor_id not in self._there:
                return False
            self._freeze_or_end(actor_id)
        finally:
            self._turns.give_back(actor_id)
        return True

    def _freeze_or_end(self, actor_id: str) -> None:
        try:
            self.freeze(actor_id)
        except (UnfreezableError, ActorHeldError) as error:
            log.warning("actor %s was ended, and its last snapshot stands: %s", actor_id, error)


def _over(most: int | None, sizes: Iterable[int]) -> bool:
    return most is not None and sum(sizes) > most
