"""Guests that are open, and those that were left: released by whoever makes, calls or closes a guest next."""

from __future__ import annotations

import atexit
from collections import deque
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

from wasmetal.host.link import log


class Releasable(Protocol):
    """A guest, as it is seen here."""

    @property
    def here(self) -> bool:
        """Whether it was made in this process, and not in one that this was forked from."""

    @property
    def stuck(self) -> bool:
        """Whether it was closed while it was in a kernel that has not ended yet."""

    def stop(self) -> None:
        """Stop it, from another thread."""

    def close(self) -> None:
        """Stop it and release what it held."""

    def release(self) -> None:
        """The same, for this guest alone."""


_open: WeakSet[Releasable] = WeakSet()
_left: deque[Releasable] = deque()
"""Guests that nobody referred to any more before they were closed, and guests that had not ended when they were."""


def opened(guest: Releasable) -> None:
    """A guest was made: it is closed before Python ends."""
    _open.add(guest)


def is_left(guest: Releasable) -> bool:
    """Whether a guest is left to be released."""
    return guest in _left


def leave(guest: Releasable) -> None:
    """Leave a guest to be released later. Takes no lock, so that finalizers may call it."""
    _left.append(guest)


def release_left() -> None:
    """Release the guests that were left, but for those that have not ended."""
    for _ in range(len(_left)):
        with suppress(IndexError):  # another thread was faster
            guest = _left.popleft()
            if guest.stuck:
                _left.append(guest)
                continue
            try:
                guest.release()
            except Exception:  # none of the caller's business, who has another guest
                log.exception("a guest that had been dropped could not be closed")


@atexit.register
def _close_all() -> None:
    """Close guests while Python still runs: Wasmtime's threads must not call back into an interpreter that is gone."""
    guests = [guest for guest in list(_open) if guest.here]
    for guest in guests:  # at once, so that they end at the same time
        guest.stop()
    for guest in guests:
        guest.close()
    release_left()
