"""Output of variable length, as host functions give it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.view import GuestMemory


class Output:
    """Room in the guest's memory for output of variable length. Checked on creation, filled once."""

    def __init__(self, memory: GuestMemory, out: int, cap: int, needed: int, dtype: DTypeLike) -> None:
        self._room = memory.array(out, cap, dtype)
        self._needed = memory.size(needed)

    def give(self, values: NDArray[Any]) -> None:
        """Write the values and their number. Raises Refusal(OVERFLOW) if they do not fit."""
        self.claim(len(values))
        self._room[: len(values)] = values

    def claim(self, count: int) -> None:
        """Write only the number; raise Refusal(OVERFLOW) if that many elements do not fit."""
        self._needed[0] = min(count, np.iinfo(self._needed.dtype).max)
        if count > len(self._room):
            raise Refusal(Errno.OVERFLOW, f"{count} elements do not fit in {len(self._room)}")

    def give_bytes(self, data: bytes) -> None:
        """Like :meth:`give`, for bytes."""
        self.give(np.frombuffer(data, np.uint8))
