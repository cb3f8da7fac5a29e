"""Random bytes for guests: from the system, or from a generator whose state can be saved."""

# ruff: noqa: D102

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np

from wasmetal.host.interrupt import Interrupt
from wasmetal.host.view import GuestMemory

_AT_ONCE = 1 << 16
"""Bytes between two checks whether the guest must stop."""


class Randomness:
    """WASI's function for random bytes."""

    def __init__(self, interrupt: Interrupt, source: Callable[[int], bytes] = os.urandom) -> None:
        """``source`` gives so many bytes."""
        self._interrupt = interrupt
        self._source = source

    def random_get(self, memory: GuestMemory, ptr: int, nbytes: int) -> None:
        out = memory.array(ptr, nbytes)
        for begin in range(0, nbytes, _AT_ONCE):
            self._interrupt.check()
            some = out[begin : begin + _AT_ONCE]
            some[:] = np.frombuffer(self._source(some.size), np.uint8)


_BLOCK = 64
"""Bytes of a BLAKE2b digest."""


class RandomStream:
    """A stream of random bytes that a seed of 32 bytes determines.

    Block number i is BLAKE2b(i) with the seed as key: who does not know the seed cannot tell it from random bytes.
    """

    def __init__(self, seed: bytes, position: int = 0) -> None:
        """``position``: how many bytes of the stream are used up."""
        self.seed = seed
        self.position = position

    def __call__(self, nbytes: int) -> bytes:
        """The next bytes."""
        first, skip = divmod(self.position, _BLOCK)
        blocks = range(first, -(-(self.position + nbytes) // _BLOCK))
        data = b"".join(hashlib.blake2b(i.to_bytes(16, "little"), key=self.seed).digest() for i in blocks)
        self.position += nbytes
        return data[skip : skip + nbytes]

    def derive(self, name: str) -> RandomStream:
        """Another stream, which this one's state and a name determine."""
        state = self.position.to_bytes(16, "little") + name.encode()
        return RandomStream(hashlib.blake2b(state, key=self.seed, digest_size=32, person=b"derive").digest())
