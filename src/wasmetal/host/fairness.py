"""Which guest's work a shared device takes next: that of the guest that has used it least.

Fair queueing by virtual time, after P. Goyal, H. M. Vin and H. Cheng, "Start-time Fair Queuing", 1996, with a
submission's device seconds in place of a packet's length: they are charged afterwards, when they are known. A guest
that returns after a pause starts at the others' virtual time, so no guest can save up time. While others wait for a
guest, the seconds on the clock are charged to it, if they are more than the device's.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from itertools import takewhile
from weakref import WeakKeyDictionary

from wasmetal.device.base import Device, Submission

SLICE = 0.01
"""Device seconds by which a guest may be ahead of another that wants the device too."""
PAUSE = 0.005
"""Seconds from one wait to the next within which a guest still counts as wanting the device. Otherwise a guest with
short lists would lose its turn to one with long lists after every list. As long as Python's thread switch interval."""
LEFT_BEHIND = 1.0
"""Seconds for which others wait for what a closed guest left on the device before they submit more. Otherwise guests
that come, submit and go would fill the device's queue."""
_FEW, _EXACT = 8, SLICE / 16
"""So many guests or more are counted together, once so much has been charged: not all of them for each token of one."""
_LOOK = 0.05
"""Seconds of waiting for a turn between two checks of the guest's limits."""


class Share:
    """One guest's share of a device. Used by the guest's own thread; locks are held for moments only.

    ``with share:`` the guest wants the device: it waits for a turn, or for its work to end.
    """

    def __init__(self, device: Device, count: Callable[[Submission], None] | None = None) -> None:
        """``count``: called once with each submission that has ended, under a lock, on the thread that notices it."""
        self._count: Callable[[Submission], object] = count or _ignore
        self._used = 0.0
        """Virtual time: device seconds used, plus those forgone in pauses."""
        self._waits = False
        self._left = -PAUSE
        """When it last stopped waiting."""
        self.joins: object = None
        """What its work shares with that of others who join the same thing: none of them waits for another."""
        self._submits = False
        """Whether it has submitted anything since it last stopped waiting."""
        self._holds_up: float | None = None
        """Since when another guest has waited for this one to catch up."""
        self._closed: float | None = None
        """When the guest ended."""
        with _making:
            self._queue = _queues.setdefault(device, _Queue())
        with self._queue.lock:
            self._queue.shares.append(self)

    def close(self) -> None:
        """Leave the queue: the guest has ended. What it left on the device still holds others up. Idempotent."""
        queue = self._queue
        with queue.lock:
            if self in queue.shares:
                queue.shares.remove(self)
                self._closed = time.monotonic()
            self._count = _ignore  # or what is left on the device would keep the guest, and the device itself, alive
            queue.submissions[:] = [each for each in queue.submissions if each[0] is not self or each[1].pending]
            queue.changed.notify_all()

    def __enter__(self) -> None:
        with self._queue.lock:
            self._return()
            self._waits = True
            self.joins = None

    def __exit__(self, *_: object) -> None:
        queue = self._queue
        with queue.lock:
            self._waits = False
            self._left = time.monotonic()
            if len(queue.shares) > 1:
                if not self._submits:
                    self._forgo()
                queue.changed.notify_all()
            self._submits = False

    def has_turn(self) -> bool:
        """Whether the guest may submit now.

        It may if it is not ahead of any guest that wants the device by more than SLICE, but for those that join what it
        joins, and no closed guest left work.
        """
        queue = self._queue
        if len(queue.shares) == 1:
            return True
        with queue.lock:
            queue.settle()
            self._return()
            first = self._first()
            for other in first:
                if other._holds_up is None:
                    other._holds_up = time.monotonic()
            return not first and not queue.left_behind()

    def wait_turn(self, look: Callable[[], None]) -> None:
        """Wait until :meth:`has_turn`. ``look`` is called from time to time, without the lock, and may raise."""
        while not self.has_turn():
            with self._queue.changed:
                # There is no notification when another guest's pause is over, or what a closed guest left has ended.
                self._queue.changed.wait(_LOOK if any(other._waits for other in self._first()) else PAUSE)
            look()

    def submitted(self, submission: Submission) -> None:
        """A submission of the guest's has begun. It is charged to the guest once it has ended, by :meth:`settle`."""
        self._submits = True
        with self._queue.lock:
            self._queue.submissions.append((self, submission))

    @property
    def alone(self) -> bool:
        """Whether no other guest uses the device, or has left work on it."""
        queue = self._queue
        return len(queue.shares) == 1 and not queue.submissions

    def settle(self) -> None:
        """Charge every guest for its submissions that have ended, whether it waits for them or not."""
        if self._queue.submissions:
            with self._queue.lock:
                self._queue.settle()

    def is_behind(self, submission: Submission) -> bool:
        """Whether an earlier submission of another guest has not been charged for yet."""
        ahead = takewhile(lambda each: each[1] is not submission, tuple(self._queue.submissions))
        return any(share is not self for share, _ in ahead)

    def _wants(self) -> bool:
        return self._waits or time.monotonic() - self._left < PAUSE

    def _return(self) -> None:
        """After a pause, start at the others' virtual time."""
        if not self._waits and (now := time.monotonic()) - self._left >= PAUSE:
            self._used = max(self._used, self._queue.time)
            self._left = now

    def _forgo(self) -> None:
        """Go level with the next guest. Otherwise one that asks for turns and never uses them would hold up all."""
        waiting = [other._used for other in self._queue.shares if other is not self and other._wants()]
        self._used = max(self._used, min(waiting, default=0.0))

    def _first(self) -> list[Share]:
        """The guests that are to go first."""
        least = self._used - SLICE
        if least <= self._queue.time:  # nobody who wants the device has used less
            return []
        joins = self.joins
        return [
            other
            for other in self._queue.shares
            if other._used < least and (joins is None or other.joins is not joins) and other._wants()
        ]


def _ignore(_: Submission) -> None:
    """Count nothing."""


class _Queue:
    """The shares of one device."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Guards everything here."""
        self.changed = threading.Condition(self.lock)
        self.shares: list[Share] = []
        self.submissions: list[tuple[Share, Submission]] = []
        """Submissions that have not been charged for yet, in order."""
        self.charged = 0.0
        """When a submission was last charged for."""
        self.time = 0.0
        """Virtual time of the device: the least that any guest that wanted it had used, as of the latest count."""
        self._uncounted = 0.0
        """Seconds charged since then."""

    def settle(self) -> None:
        """Charge guests for what has ended, often that of many at once. Called with the lock."""
        if not self.submissions:
            return
        if len(self.submissions) == len(self.shares) == 1:
            self._settle_only()
            return
        ended: list[tuple[Share, Submission]] = []
        pending: list[tuple[Share, Submission]] = []
        for each in self.submissions:
            (pending if each[1].pending else ended).append(each)
        if not ended:
            return
        self.submissions[:] = pending
        now, behind = time.monotonic(), len(self.shares) < _FEW
        for share, submission in ended:
            share._count(submission)
            seconds = submission.seconds
            if share._holds_up is not None and self.shares != [share]:
                # Pauses count too, or a guest with short lists could hold up others for many times its device seconds.
                seconds = max(seconds, now - max(share._holds_up, self.charged))
            self.charged = now
            share._used += seconds
            self._uncounted += seconds
            behind = behind or share._holds_up is not None
        if self._uncounted < _EXACT and not behind:
            return
        self._uncounted = 0.0
        latest = max([share._used for share in self.shares if share._waits], default=0.0)
        for share, _ in ended:
            share._holds_up = now if latest - share._used > SLICE else None
        recent = now - PAUSE if len(self.shares) > 1 else -math.inf
        wanting = [share._used for share in self.shares if share._waits or share._left > recent]
        self.time = max(self.time, min(wanting, default=0.0))
        if len(self.shares) > 1:
            self.changed.notify_all()

    def _settle_only(self) -> None:
        """Settle the only submission, while there is only one guest: the same, for round trips that are to be short."""
        share, submission = self.submissions[0]
        if submission.pending:
            return
        self.submissions.clear()
        share._count(submission)
        share._used += submission.seconds
        self.charged = time.monotonic()
        self._uncounted, share._holds_up = 0.0, None
        (only,) = self.shares
        self.time = max(self.time, only._used)

    def left_behind(self) -> bool:
        """Whether the device is still at work for a guest that was closed a moment ago."""
        since = time.monotonic() - LEFT_BEHIND
        return any(share._closed is not None and share._closed > since for share, _ in self.submissions)


_queues: WeakKeyDictionary[Device, _Queue] = WeakKeyDictionary()
_making = threading.Lock()
