"""Keeping buffers resident between submissions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from wasmetal.device.bins import Bins
from wasmetal.device.heartbeat import Heartbeat
from wasmetal.device.metal.api import mtl, objc
from wasmetal.device.metal.physical import PhysicalDevice

MOST_SETS = 32
"""The most residency sets that a queue accepts."""


class Residency:
    """The residency sets of a queue, so that no submission waits for pages to be wired.

    The system keeps or evicts each set as a whole, so buffers are spread over sets of limited size. A set only grows
    beyond that for a longer buffer, or when the queue accepts no more sets. An idle device's sets lose residency after
    about a second unless it is requested again: a heartbeat does that.

    If the GPU has no residency sets (``kept`` is False), Metal makes buffers resident for each submission.
    """

    def __init__(self, physical: PhysicalDevice, queue: Any) -> None:
        """``queue``: an ``MTLCommandQueue``."""
        self.physical = physical
        self.heartbeat = Heartbeat(self._request)
        self._lock = threading.RLock()  # garbage collection may call remove() within add()
        with objc.autorelease_pool():
            self._sets: Bins[Any] = Bins(physical.part_bytes, MOST_SETS, partial(_new_set, physical.handle, queue))

    @property
    def kept(self) -> bool:
        """Whether buffers stay resident between submissions."""
        return bool(self._sets.bins)

    def add(self, buffer: Any) -> None:
        """Keep a buffer resident, from the next submission on."""
        if self.kept:
            with self._lock, objc.autorelease_pool():
                found = self._sets.add(id(buffer), int(buffer.length()))
                found.addAllocation_(buffer)
                found.commit()
            self.heartbeat.hasten()

    def remove(self, buffers: Sequence[Any]) -> None:
        """No longer keep buffers resident."""
        if self.kept:
            with self._lock, objc.autorelease_pool():
                for buffer in buffers:
                    found = self._sets.remove(id(buffer))
                    found.removeAllocation_(buffer)
                    found.commit()

    def close(self) -> None:
        """End the residency of all sets, and stop the heartbeat."""
        self.heartbeat.stop()
        with self._lock, objc.autorelease_pool():
            for each in self._sets.bins:
                each.endResidency()

    def _request(self) -> bool:
        """Request residency of all sets; return whether they hold any buffer. Does nothing once it is closed."""
        with self._lock, objc.autorelease_pool():
            # A beat may have been due when the heartbeat was stopped.
            used = [] if self.heartbeat.stopped else self._sets.used
            for each in used:
                each.requestResidency()
            return bool(used)


def _new_set(device: Any, queue: Any) -> Any:
    """Another ``MTLResidencySet`` of the queue; None if the GPU makes none."""
    made, _ = device.newResidencySetWithDescriptor_error_(mtl.MTLResidencySetDescriptor.new(), None)
    if made is not None:
        queue.addResidencySet_(made)
    return made
