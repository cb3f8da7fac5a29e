"""Landlock, by which a process on Linux gives up access to files and network: https://docs.kernel.org/userspace-api/landlock.html

Wasmetal uses it through the C library's ``syscall``: there is no wrapper.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Sequence
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""System call numbers, the same on all architectures."""
_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE = 1 << 0
_WRITE = 1 << 1
_READ = 1 << 2 | 1 << 3
_CHANGE_FOLDER = 0b1_1111_1111 << 4
"""Making and removing files of every kind."""
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_TO_FILE = _WRITE | _TRUNCATE
_ADDED = {2: _REFER, 3: _TRUNCATE}
"""Rights that later versions added."""
_NETWORK = 0b11
"""Binding and connecting TCP sockets, from version 4."""
_SCOPES = 0b11
"""Abstract Unix sockets and signals of other processes, from version 6."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def restrict(*, reading: bool, writable: Sequence[str | Path]) -> bool:
    """Deny this thread, and threads and processes that it starts from now on, what is not named here.

    ``reading``: whether files may be opened for reading. ``writable``: files and folders that may be changed. Programs
    cannot be executed; TCP connections and signals to other processes are denied where the kernel can. Returns False
    if the kernel has no Landlock. PR_SET_NO_NEW_PRIVS must be set.
    """
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    rights = _EXECUTE | _WRITE | _CHANGE_FOLDER | (0 if reading else _READ)
    rights |= sum(right for since, right in _ADDED.items() if version >= since)
    ruleset = _Ruleset(rights, _NETWORK if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    handle = _libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(ctypes.sizeof(ruleset)), 0)
    if handle < 0:
        return False
    try:
        for path in writable:
            _allow(handle, path, rights & ~_EXECUTE)
        return bool(_libc.syscall(_RESTRICT_SELF, handle, 0) == 0)
    finally:
        os.close(handle)


def _allow(ruleset: int, path: str | Path, rights: int) -> None:
    with contextlib.suppress(OSError):  # not on this machine
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            allowed = rights if stat.S_ISDIR(os.fstat(at).st_mode) else rights & (_TO_FILE | _READ)
            _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(_Beneath(allowed, at)), 0)
        finally:
            os.close(at)
