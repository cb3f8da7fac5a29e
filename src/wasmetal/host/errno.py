"""Refusals: how a host function gives a guest an errno."""

from __future__ import annotations

import errno
from enum import IntEnum

from wasmetal.errors import (
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    DeviceTimeoutError,
    MemoryRefusedError,
    ModelError,
    OpError,
    OutOfDeviceMemoryError,
    WrapRefusedError,
)
from wasmetal.host.abi import Errno

__all__ = ["Errno", "Refusal", "WasiErrno", "errno_of"]


class WasiErrno(IntEnum):
    """Errnos of WASI that only its functions for files give."""

    ACCES = 2
    AGAIN = 6
    BADF = 8
    BUSY = 10
    DQUOT = 19
    EXIST = 20
    FBIG = 22
    ILSEQ = 25
    INVAL = 28
    IO = 29
    ISDIR = 31
    LOOP = 32
    MFILE = 33
    MLINK = 34
    NAMETOOLONG = 37
    NFILE = 41
    NOENT = 44
    NOMEM = 48
    NOSPC = 51
    NOTDIR = 54
    NOTEMPTY = 55
    NOTSUP = 58
    NXIO = 60
    OVERFLOW = 61
    PERM = 63
    ROFS = 69
    SPIPE = 70
    TXTBSY = 74
    XDEV = 75


_SYSTEM = {getattr(errno, f"E{each.name}"): each for each in WasiErrno}


class Refusal(Exception):
    """A guest's request is refused: with an errno for the guest and a sentence for the host's log."""

    def __init__(self, errno: Errno | WasiErrno, message: str) -> None:
        super().__init__(message)
        self.errno = errno


class NoMemory(Refusal):
    """The guest exports no memory, so no pointer means anything."""


_ERRNOS: tuple[tuple[type[Exception], Errno], ...] = (
    (OpError, Errno.INVAL),
    (ModelError, Errno.INVAL),
    (MemoryRefusedError, Errno.NOMEM),
    (OutOfDeviceMemoryError, Errno.NOMEM),
    (WrapRefusedError, Errno.NOTSUP),
    (DeviceTimeoutError, Errno.TIMEDOUT),
    (DeviceLostError, Errno.NODEV),
    (DeviceNotFoundError, Errno.NODEV),
    (DeviceError, Errno.IO),
)


def errno_of(error: BaseException) -> Errno | WasiErrno:
    """The errno for a refusal or an error raised below; IO for errors that the guest did not cause."""
    if isinstance(error, Refusal):
        return error.errno
    if isinstance(error, OSError):
        return _SYSTEM.get(error.errno or 0, WasiErrno.IO)
    return next((errno for kind, errno in _ERRNOS if isinstance(error, kind)), Errno.IO)
