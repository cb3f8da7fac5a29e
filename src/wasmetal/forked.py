"""Refusing, in a process that ``os.fork`` made, what was opened before the fork.

The child has a copy of the memory, but none of the threads of drivers, Wasmtime or wasmetal, and its devices still
belong to the parent. So what comes from the parent is neither used there nor released.
"""

from __future__ import annotations

import os

from wasmetal.errors import ForkedError


class _Process:
    """This process."""

    forks = 0
    """How many forks lie between it and the process that imported this module."""


def _count_fork() -> None:
    _Process.forks += 1


os.register_at_fork(after_in_child=_count_fork)


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
