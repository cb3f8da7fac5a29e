"""Refusals: how a host function gives a guest an errno."""

from __future__ import annotations

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

__all__ = ["Errno", "Refusal", "errno_of"]


class Refusal(Exception):
    """A guest's request is refused: with an errno for the guest and a sentence for the host's log."""

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
    """The errno for an error raised below the host functions; IO for errors that the guest did not cause."""
    return next((errno for kind, errno in _ERRNOS if isinstance(error, kind)), Errno.IO)
