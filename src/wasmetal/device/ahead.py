"""What is prepared for the next submission while the device runs the one before it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Generic, TypeVar

from wasmetal.device.backend import Recording
from wasmetal.device.release import on_release

T = TypeVar("T")
_Key = tuple[weakref.ref[Recording], ...]


class Ahead(Generic[T]):
    """What was prepared for recordings that are submitted over and over, as those of a decoded token are.

    At most one thing at a time, which is used once. It is dropped as soon as one of its recordings is collected: while
    they are alive, so is all that they use. To be called by one thread at a time.
    """

    def __init__(self) -> None:
        self._latest: _Key = ()
        self._expected: _Key = ()
        self._ready: dict[_Key, T] = {}
        # If everything becomes garbage at once, what was prepared still goes first: see on_release.
        on_release(self, self._ready.clear)

    def take(self, recordings: Sequence[Recording]) -> T | None:
        """What was prepared for these recordings, which are submitted now; None if nothing was."""
        key = tuple(map(weakref.ref, recordings))
        self._expected = key if key == self._latest else ()
        self._latest = key
        return self._ready.pop(key, None)

    def expects(self, recordings: Sequence[Recording]) -> bool:
        """Whether to prepare for these recordings: they were submitted last, twice in a row, and nothing is ready."""
        key = tuple(map(weakref.ref, recordings))
        return key == self._expected and key not in self._ready

    def put(self, recordings: Sequence[Recording], prepared: T) -> None:
        """Keep what was prepared for these recordings, in the place of what was kept before."""
        ready = self._ready
        ready.clear()
        # Called only for a recording of what is ready now, since the references to others are gone. It takes no lock.
        ready[tuple(weakref.ref(recording, lambda _: ready.clear()) for recording in recordings)] = prepared
