"""Keeping buffers where the GPU can reach them, also between submissions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from wasmetal.device.heartbeat import Heartbeat
from wasmetal.device.metal.api import mtl, objc

MOST_SETS = 32
"""Residency sets that a queue takes."""


class ResidencySet:
    """An ``MTLResidencySet``, and how many bytes are in it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.nbytes = 0


class Residency:
    """Residency sets that a queue always has with it, so that no submission waits for pages to be wired.

    The system decides for each set as a whole whether it stays resident, so buffers are spread over sets of at most
    ``set_bytes``; only a longer buffer, or one for which there is no set left, makes a set longer. An idle device
    loses its sets' residency after about a second, unless it is asked for again and again: a heartbeat does that.

    Where the GPU offers no sets (``kept`` is False) each submission makes its own buffers resident, as Metal does
    unasked.
    """

    def __init__(self, device: Any, queue: Any, set_bytes: int) -> None:
        self._device = device
        self._queue = queue
        self._set_bytes = set_bytes
        self._lock = threading.RLock()  # buffers go when the garbage collector finds them, perhaps within add()
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
        """Have buffers stay resident, from the next submission on."""
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
        """Keep them no longer."""
        if not self.kept:
            return
        with self._lock, objc.autorelease_pool():
            for buffer in buffers:
                found, nbytes = self._in.pop(id(buffer))
                found.handle.removeAllocation_(buffer)
                found.handle.commit()
                found.nbytes -= nbytes

    def use(self) -> None:
        """Called for every submission: the buffers are wanted now, and for some time."""
        if self.kept:
            grown, self._grown = self._grown, False
            self.heartbeat.use(now=grown)

    def close(self) -> None:
        """Let the system have the pages back."""
        self.heartbeat.stop()
        with self._lock, objc.autorelease_pool():
            for each in self._sets:
                each.handle.endResidency()

    def _request(self) -> bool:
        """Ask that all sets be resident; return whether there is anything in them."""
        with self._lock, objc.autorelease_pool():
            for each in self._sets:
                if each.nbytes:
                    each.handle.requestResidency()
            return bool(self._in)

    def _room(self, nbytes: int) -> ResidencySet:
        """The set to put a buffer in: one with room for it, else a new one, else the least full."""
        for each in self._sets:
            if each.nbytes == 0 or each.nbytes + nbytes <= self._set_bytes:
                return each
        return self._new_set() or min(self._sets, key=lambda each: each.nbytes)

    def _new_set(self) -> ResidencySet | None:
        """None if the GPU or its queue takes no more."""
        if len(self._sets) == MOST_SETS:
            return None
        handle, _ = self._device.newResidencySetWithDescriptor_error_(mtl.MTLResidencySetDescriptor.new(), None)
        if handle is None:
            return None
        self._queue.addResidencySet_(handle)
        self._sets.append(ResidencySet(handle))
        return self._sets[-1]
