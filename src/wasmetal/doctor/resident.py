"""Resident memory of this process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Bytes of this process that are in RAM now (not the peak)."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    # macOS keeps no /proc; its ps prints KiB.
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())])) * 1024
