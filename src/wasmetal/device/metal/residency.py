"""Keeping buffers resident between submissions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from wasmetal.device.heartbeat import Heartbeat
from wasmetal.device.metal.api import mtl, objc

MOST_SETS = 32
"""The most residency sets that a queue accepts."""


class ResidencySet:
    """An ``MTLResidencySet``, and the bytes in it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.nbytes = 0


class Residency:
    """The residency sets of a queue, so that no submission waits for pages to be wired.

    The system keeps or evicts each set as a whole, so buffers are spread over sets of at most ``set_bytes``. A set only
    grows beyond that for a longer buffer, or when the queue accepts no more sets. An idle device's sets lose residency
    after about a second unless it is requested again: a heartbeat does that.

    If the GPU has no residency sets (``kept`` is False), Metal makes buffers resident for each submission.
    """

    def __init__(self, device: Any, queue: Any, set_bytes: int) -> None:
        self._device = device
        self._queue = queue
        self._set_bytes = set_bytes
        self._lock = threading.RLock()  # garbage collection may call remove() within add()
        self._sets: list[ResidencySet] = []
        self._in: dict[int, tuple[ResidencySet, int]] = {}
        self._grown = False
        self.heartbeat = Heartbeat(self._request)
        with objc.autorelease_pool():
            self._new_set()

    @property
    def kept(self) -> bool:
        """Whether buffers stay resident between submissions."""
        return bool(self._sets)

    def add(self, buffers: Sequence[Any]) -> None:
        """Keep buffers resident, from the next submission on."""
        if not self.kept:
            return
        with self._lock, objc.autorelease_pool():
            for buffer in buffers:
                nbytes = int(buffer.length())
                found = self._room(nbytes)
                found.handle.addAllocation_(buffer)
                found.handle.commit()
                found.nbytes += nbytes
                self._in[id(buffer)] = found, nbytes
            self._grown = True

    def remove(self, buffers: Sequence[Any]) -> None:
        """No longer keep buffers resident."""
        if not self.kept:
            return
        with self._lock, objc.autorelease_pool():
            for buffer in buffers:
                found, nbytes = self._in.pop(id(buffer))
                found.handle.removeAllocation_(buffer)
                found.handle.commit()
                found.nbytes -= nbytes

    def use(self) -> None:
        """Note a submission: the buffers are needed now, and probably again soon."""
        if self.kept:
            grown, self._grown = self._grown, False
            self.heartbeat.use(now=grown)

    def close(self) -> None:
        """End the residency of all sets, and stop the heartbeat."""
        self.heartbeat.stop()
        with self._lock, objc.autorelease_pool():
            for each in self._sets:
                each.handle.endResidency()

    def _request(self) -> bool:
        """Request residency of all sets; return whether they hold any buffer."""
        with self._lock, objc.autorelease_pool():
            for each in self._sets:
                if each.nbytes:
                    each.handle.requestResidency()
            return bool(self._in)

    def _room(self, nbytes: int) -> ResidencySet:
        """The set for a buffer: one with room, else a new one, else the least full."""
        for each in self._sets:
            if each.nbytes == 0 or each.nbytes + nbytes <= self._set_bytes:
                return each
        return self._new_set() or min(self._sets, key=lambda each: each.nbytes)

    def _new_set(self) -> ResidencySet | None:
        """A new set; None if the GPU or the queue accepts no more."""
        if len(self._sets) == MOST_SETS:
            return None
        handle, _ = self._device.newResidencySetWithDescriptor_error_(mtl.MTLResidencySetDescriptor.new(), None)
        if handle is None:
            return None
        self._queue.addResidencySet_(handle)
        self._sets.append(ResidencySet(handle))
        return self._sets[-1]
