"""Refusing, in a process that ``os.fork`` made, what was opened before the fork.

The child has a copy of the memory, but none of the threads of drivers, Wasmtime or wasmetal, and its devices still
belong to the parent. So what comes from the parent is neither used there nor released.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from wasmetal.errors import ForkedError


class _Process:
    """This process."""

    forks = 0
    """How many forks lie between it and the process that imported this module."""


def _count_fork() -> None:
    _Process.forks += 1


os.register_at_fork(after_in_child=_count_fork)


def skip_exit_handlers() -> None:
    """Have processes that are forked from now on end without the exit handlers of GPU drivers. Call it once.

    NVIDIA's handler crashes there and breaks the parent's device; Mesa's waits for threads that only the parent has.
    Handlers of C libraries run in reverse order: one that a child registers first thing, and that ends it, keeps it
    from running its parent's. Python's own (``atexit``) have run by then. Does nothing where the C library has no
    ``on_exit``, as on macOS.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        end, on_exit = libc._exit, libc.on_exit
        os.register_at_fork(after_in_child=lambda: on_exit(end, None))  # called with the exit status first


class Origin:
    """The process in which something was opened: the one that makes this object."""

    __slots__ = ("_forks", "_what")

    def __init__(self, what: str) -> None:
        """``what`` was opened, for messages."""
        self._what = what
        self._forks = _Process.forks

    @property
    def here(self) -> bool:
        """Whether it was opened in this process."""
        return self._forks == _Process.forks

    def check(self) -> None:
        """Raise ForkedError if this process was forked since."""
        if self._forks != _Process.forks:
            raise ForkedError(
                f"{self._what} was opened before os.fork() and cannot be used in the child; "
                'start processes with the method "spawn", or open it after the fork'
            )
