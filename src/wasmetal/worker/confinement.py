"""What a worker process gives up, and the limits that the system holds it to.

On Linux: writing files, executing programs, network and other processes (Landlock and seccomp, as far as the kernel has
them), and memory. On macOS: opening files and sockets, for workers that need none.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wasmetal.worker import landlock, seccomp

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

DEVICES = ("/dev/dri", "/dev/kfd", "/dev/null", "/dev/shm", *sorted(glob.glob("/dev/nvidia*")))
"""What drivers of GPUs write to."""


def confine(*, files: bool, writable: Sequence[str] = ()) -> None:
    """Give up, for good, all that the worker does not need.

    ``files``: whether it may open files, to read them and, at or below ``writable``, to change them.

    Raises RuntimeError if the process has threads already: on Linux those would keep what this one gives up.
    """
    if sys.platform == "linux" and (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise RuntimeError(f"the worker has {threads} threads before it is confined")
    descriptors = _descriptors()
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        landlock.restrict(reading=files, writable=writable)
        seccomp.restrict()
    if not files:
        _limit(resource.RLIMIT_FSIZE, 0)
        _limit(resource.RLIMIT_NOFILE, descriptors)
        with contextlib.suppress(OSError):
            while True:  # fill the gaps below the limit
                os.dup(0)


class Allowance:
    """Memory and time of one request at a time."""

    def __init__(self) -> None:
        # Opened now, since confine() may take that away.
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC) if sys.platform == "linux" else None

    @contextmanager
    def granted(self, nbytes: int | None, seconds: float | None) -> Iterator[None]:
        """In the ``with`` block, ``nbytes`` of memory more than now, and ``seconds``: then the system ends the process.

        Where memory runs out, allocations fail, which may or may not end the process.
        """
        if nbytes is not None:
            # RLIMIT_AS would count what is reserved and never used: linear memories, and an arena for each thread.
            _limit(resource.RLIMIT_DATA, min(self._data() + nbytes, sys.maxsize), hard=False)
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if nbytes is not None:
                _limit(resource.RLIMIT_DATA, resource.getrlimit(resource.RLIMIT_DATA)[1], hard=False)

    def _data(self) -> int:
        """Bytes of writable private memory."""
        if self._statm is None:
            return 0
        return int(os.pread(self._statm, 200, 0).split()[5]) * resource.getpagesize()


def _limit(what: int, value: int, *, hard: bool = True) -> None:
    """Lower a limit as far as the system allows."""
    most = resource.getrlimit(what)[1]
    if most != resource.RLIM_INFINITY and (value > most or value == resource.RLIM_INFINITY):
        value = most
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(what, (value, value if hard else most))


def _descriptors() -> int:
    """One more than the highest descriptor in use."""
    return max(int(name) for name in os.listdir("/dev/fd")) + 1
