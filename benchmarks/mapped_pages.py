"""Pages of the KV cache of a thawed actor: copied, or the snapshot's own file mapped in their place.

    python -m benchmarks.mapped_pages

As many bytes as 4,096 tokens of SmolLM2 135M have in float32, in 60 pools. Then all of them are read, as the first
token does, on as many threads as there are cores. The file is laid out as suits the mapping: what a pool gets of it is
one stretch, or stretches of 512 or 32 tokens. Snapshots have the last. Linux only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from wasmetal.actor.threads import each
from wasmetal.device.rows import Rows

POOLS, TOKENS, ROW, BLOCK = 60, 4096, 768, 32
STRETCH = TOKENS * ROW
"""Bytes of a pool that the session has."""
ROUNDS = 9
THREADS = os.cpu_count() or 1
_WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE
_FIXED, _POPULATE = 0x10, 0x8000

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)


class Cache:
    """The pools, one after the other, each with as much room again."""

    def __init__(self) -> None:
        nbytes = POOLS * 2 * STRETCH
        self.base = int(libc.mmap(None, nbytes, _WRITABLE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.base))
        self.bytes[:] = 1
        self.pools = self.bytes.reshape(POOLS, 2 * STRETCH)[:, :STRETCH]

    def read(self) -> None:
        """Touch all bytes."""
        each(lambda pool: int(pool.view(np.uint64).sum()), list(self.pools), THREADS)

    def copy(self, data: np.ndarray) -> None:
        """Copy blocks [blocks, POOLS, n] as a thawed session's are."""
        rows = Rows(list(data))
        rows.copy(0, [int(pool.ctypes.data) for pool in self.pools])

    def map(self, descriptor: int, piece: int, flags: int = 0) -> None:
        """Map a file over the pools, so many bytes at a time; pieces do not follow one another in the file."""
        count = STRETCH // piece
        for pool in range(POOLS):
            for number in range(count):
                at = self.base + 2 * pool * STRETCH + number * piece
                offset = pool * STRETCH + (count - 1 - number) * piece
                if libc.mmap(at, piece, _WRITABLE, mmap.MAP_PRIVATE | _FIXED | flags, descriptor, offset) != at:
                    sys.exit(f"cannot map: {os.strerror(ctypes.get_errno())}")

    def unmap(self) -> None:
        """Put memory that was never used in place of what the session had."""
        for pool in range(POOLS):
            at, flags = self.base + 2 * pool * STRETCH, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED
            libc.mmap(at, STRETCH, _WRITABLE, flags, -1, 0)


def main() -> None:
    """Print a line for each way: shortest times in ms."""
    cache = Cache()
    blocks = np.random.default_rng(0).integers(0, 256, (TOKENS // BLOCK, POOLS, BLOCK * ROW), np.uint8)

    def measure(name: str, thaw: Callable[[], None], mapped: bool = False, fresh: bool = False) -> None:
        best = (1e9,) * 4
        for _ in range(ROUNDS):
            if fresh:
                cache.unmap()
            taken = [_ms(thaw), _ms(cache.read), _ms(cache.unmap) if mapped else 0.0]
            best = min(best, (sum(taken), *taken))
            if mapped:
                cache.pools[:] = 1  # in use again, before the next round
        print(f"{name:54}" + "".join(f"{each:9.1f}" for each in best), flush=True)

    print(f"{THREADS} threads, ms".ljust(54) + "".join(f"{each:>9}" for each in ("together", "thaw", "read", "unmap")))
    measure("copied to pages in use", lambda: cache.copy(blocks))
    measure("copied to pages never used", lambda: cache.copy(blocks), fresh=True)
    with tempfile.TemporaryFile() as file:
        for name, descriptor in (("memfd", os.memfd_create("pages")), ("disk", file.fileno())):
            with os.fdopen(descriptor, "wb", closefd=False) as out:
                out.write(blocks.tobytes())
            for tokens in (TOKENS, 512, BLOCK):
                way = f"{name}: mapped over pages in use, {POOLS * TOKENS // tokens} pieces"
                measure(way, partial(cache.map, descriptor, tokens * ROW), mapped=True)
            populated = partial(cache.map, descriptor, STRETCH, _POPULATE)
            measure(f"{name}: the same, {POOLS} pieces, MAP_POPULATE", populated, mapped=True)
            stretches = partial(cache.map, descriptor, STRETCH)
            measure(f"{name}: over pages never used, {POOLS} pieces", stretches, mapped=True, fresh=True)


def _ms(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
