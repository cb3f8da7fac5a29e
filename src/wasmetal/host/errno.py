"""The error numbers that guests see: those of WASI preview 1, so that a C library's ``strerror`` knows them."""

from __future__ import annotations

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


class Errno(IntEnum):
    """What a host function returns. ``abi/wasmetal.h`` says what each means there."""

    SUCCESS = 0
    TOOBIG = 1
    AGAIN = 6
    BADF = 8
    BUSY = 10
    FAULT = 21
    ILSEQ = 25
    INVAL = 28
    IO = 29
    MFILE = 33
    NODEV = 43
    NOENT = 44
    NOMEM = 48
    NOTSUP = 58
    OVERFLOW = 61
    PERM = 63
    TIMEDOUT = 73


class Refusal(Exception):
    """A guest's request that a host function does not grant: an errno for the guest, a sentence for the host's log."""

    def __init__(self, errno: Errno, message: str) -> None:
        super().__init__(message)
        self.errno = errno


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


def errno_of(error: Exception) -> Errno:
    """The errno for an error raised below the host functions; IO for any that no guest's request explains."""
    return next((errno for kind, errno in _ERRNOS if isinstance(error, kind)), Errno.IO)
