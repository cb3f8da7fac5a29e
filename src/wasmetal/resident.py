"""Resident memory of a process: how much of it is in RAM now, not at its peak."""

from __future__ import annotations

import ctypes
import os
import sys

_PROC_PIDTASKINFO = 4


class _TaskInfo(ctypes.Structure):
    """``struct proc_taskinfo`` of <sys/proc_info.h>."""

    _fields_ = (("virtual", ctypes.c_uint64), ("resident", ctypes.c_uint64), ("rest", ctypes.c_uint8 * 80))


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of this process, or of another one of this user, in bytes; 0 if that process has ended."""
    pid = os.getpid() if pid is None else pid
    return _of_macos(pid) if sys.platform == "darwin" else _of_linux(pid)


def _of_linux(pid: int) -> int:
    # smaps_rollup walks the page tables. VmRSS and statm add up counters of each processor, which the kernel
    # folds into one only now and then: with many processors they are megabytes off.
    for file, field in (("smaps_rollup", "Rss:"), ("status", "VmRSS:")):
        try:
            with open(f"/proc/{pid}/{file}", encoding="ascii", errors="replace") as lines:
                return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)
        except OSError:
            continue
    return 0


def _of_macos(pid: int) -> int:
    info = _TaskInfo()
    libproc = ctypes.CDLL("/usr/lib/libproc.dylib")
    taken = libproc.proc_pidinfo(pid, _PROC_PIDTASKINFO, ctypes.c_uint64(0), ctypes.byref(info), ctypes.sizeof(info))
    return info.resident if taken == ctypes.sizeof(info) else 0
