"""Keeping buffers where the GPU can reach them, also between submissions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from wasmetal.device.metal.api import mtl, objc


class Residency:
    """An ``MTLResidencySet`` that a queue always has with it, so that no submission waits for pages to be wired.

    Where the GPU offers none (``kept`` is False) each submission makes its own buffers resident, as Metal does unasked.
    """

    def __init__(self, device: Any, queue: Any) -> None:
        self._lock = threading.RLock()  # buffers go when the garbage collector finds them, perhaps within add()
        with objc.autorelease_pool():
            self._set, _ = device.newResidencySetWithDescriptor_error_(mtl.MTLResidencySetDescriptor.new(), None)
            if self._set is not None:
                queue.addResidencySet_(self._set)

    @property
    def kept(self) -> bool:
        """Whether buffers stay resident between submissions."""
        return self._set is not None

    def add(self, buffers: Sequence[Any]) -> None:
        """Make buffers resident, and keep them so."""
        self._change(buffers, "addAllocation_")
        if self._set is not None:
            self._set.requestResidency()  # now, and not when the first submission has to wait for it

    def remove(self, buffers: Sequence[Any]) -> None:
        """Keep them no longer."""
        self._change(buffers, "removeAllocation_")

    def _change(self, buffers: Sequence[Any], method: str) -> None:
        if self._set is None:
            return
        with self._lock, objc.autorelease_pool():
            change = getattr(self._set, method)
            for buffer in buffers:
                change(buffer)
            self._set.commit()
