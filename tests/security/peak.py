"""How much memory something takes at its peak."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20


@contextmanager
def growth_below(nbytes: int) -> Iterator[None]:
    """Assert that the resident memory of this process does not grow by that many bytes meanwhile, even for a moment."""
    before = _reset()
    yield
    grown = _peak() - before
    assert grown < nbytes, f"grew by {grown} bytes"


def _reset() -> int:
    """Start to measure the peak anew, where the system can (macOS cannot); return what is resident now, in bytes."""
    gc.collect()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    if sys.platform == "linux":
        # getrusage would count what the process had before it executed Python.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
