"""Memory of another process, where the system cannot be told to limit it: macOS ignores the limits of ``setrlimit``."""

from __future__ import annotations

import ctypes
import sys

ENFORCED = sys.platform == "linux"
"""Whether the system holds a process to RLIMIT_DATA, so that nobody needs to look."""

_PROC_PIDTASKINFO = 4


class _TaskInfo(ctypes.Structure):
    """``struct proc_taskinfo`` of <sys/proc_info.h>."""

    _fields_ = (("virtual", ctypes.c_uint64), ("resident", ctypes.c_uint64), ("rest", ctypes.c_uint8 * 80))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process of this user, in bytes; 0 if it has ended."""
    if sys.platform == "darwin":
        info = _TaskInfo()
        libproc = ctypes.CDLL("/usr/lib/libproc.dylib")
        taken = libproc.proc_pidinfo(
            pid, _PROC_PIDTASKINFO, ctypes.c_uint64(0), ctypes.byref(info), ctypes.sizeof(info)
        )
        return info.resident if taken == ctypes.sizeof(info) else 0
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS")), 0)
    except OSError:
        return 0
