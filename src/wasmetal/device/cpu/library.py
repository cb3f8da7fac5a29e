"""The compiled kernels: which library suits this processor, and how a list of its calls is run."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wasmetal import processor
from wasmetal.errors import DeviceError

MOST_BUFFERS = 8
CALL = struct.Struct(f"<{MOST_BUFFERS}QQII")
"""``Call`` of native/kernel.h: buffers, parameters, kernel."""
_V3 = {"avx2", "fma", "f16c", "bmi2"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}

Call = tuple[int, Sequence[int], bytes]
"""A compiled kernel: its number in the library, the addresses of its buffers, its parameters."""
Words = NDArray[np.uint64]


class Calls:
    """Calls of kernels, to be run in order. The caller keeps what the addresses point to alive."""

    def __init__(self, library: Library, calls: Sequence[Call], stop: ctypes.c_uint8):
        """No call begins while ``stop`` is not 0, except for the first of a run."""
        self.count = len(calls)
        self.stop = stop
        self._library = library
        self._params = ctypes.create_string_buffer(b"".join([params for _, _, params in calls]))
        self._calls = ctypes.create_string_buffer(CALL.size * self.count)
        at = ctypes.addressof(self._params)
        for i, (number, addresses, params) in enumerate(calls):
            unused = (0,) * (MOST_BUFFERS - len(addresses))
            CALL.pack_into(self._calls, i * CALL.size, *addresses, *unused, at, number, 0)
            at += len(params)

    def run(self, first: int, seconds: float) -> int:
        """Run from call ``first`` on for about ``seconds``, but at least one call, or until ``stop`` is not 0.

        Returns the number of the next call. Python's lock is released.
        """
        library = self._library
        return int(library.run(self._calls, self.count, first, library.threads, seconds, ctypes.byref(self.stop)))


class Library:
    """One compiled library."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be loaded."""
        loaded = ctypes.CDLL(str(path))
        self.name = path.name
        self.threads = thread_count()
        self.run = loaded.wasmetal_run
        self.run.argtypes = (
            *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32),
            *(ctypes.c_double, ctypes.c_void_p),
        )
        self.run.restype = ctypes.c_uint32
        self._kernel = loaded.wasmetal_kernel
        self._numbers: dict[str, int] = {}

    def copy_rows(self, targets: Sequence[int], *sources: Words) -> None:
        """Copy rows to these addresses: of each source, one after the other, row i to address i.

        ``sources``: the addresses of their first rows, the bytes from a row to the next, the bytes of a row, and the
        sums of those of the sources before.
        """
        number = self.number("copy_rows")
        assert number is not None
        arrays = (np.array(targets, np.uint64), *sources)
        count, sizes = len(sources[0]), sources[2]
        params = struct.pack("<III", len(targets), count, len(targets) * int(sizes.sum()) >= _MUCH)
        Calls(self, [(number, [each.ctypes.data for each in arrays], params)], ctypes.c_uint8()).run(0, 0.0)

    def number(self, kernel: str) -> int | None:
        """The number of a kernel; None if the library has none of that name."""
        if kernel not in self._numbers:
            self._numbers[kernel] = self._kernel(kernel.encode())
        number = self._numbers[kernel]
        return None if number < 0 else number


_MUCH = 4 << 20
"""Bytes of copies that bypass the caches, from which what is read and written would drive out all else."""
FEW_ROWS = 11
"""GEMMs of up to so many valid rows have a method of their own (``FEW`` in ``native/panels.h``)."""


@cache
def library() -> Library | None:
    """The library for this processor; None if there is none, as on x86-64 without AVX2."""
    name = _suitable(sys.platform, platform.machine(), processor.flags())
    if name is None:
        return None
    try:
        with resources.as_file(resources.files("wasmetal.device.cpu") / "generated" / name) as path:
            return Library(path)
    except OSError:
        return None  # such as a system with another C library


def thread_count() -> int:
    """Threads of the CPU device: WASMETAL_THREADS, or as many as this process has cores. Raises DeviceError."""
    wanted = os.environ.get("WASMETAL_THREADS")
    if wanted is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
        raise DeviceError(f"WASMETAL_THREADS is {wanted!r}; set it to a number from 1 to 1024")
    return int(wanted)


def _suitable(system: str, machine: str, flags: set[str]) -> str | None:
    if system == "darwin":
        return "arm64.dylib" if machine == "arm64" else None
    if system != "linux":
        return None
    if machine == "x86_64":
        return "x86_64_v4.so" if flags >= _V4 else "x86_64_v3.so" if flags >= _V3 else None
    return "aarch64.so" if machine == "aarch64" and flags >= {"asimddp", "asimdhp"} else None
