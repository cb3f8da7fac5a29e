"""Errnos of wasi-nn for what the host's own parts raise."""

from __future__ import annotations

from wasmetal.host.errno import Errno, NoMemory, WasiErrno, errno_of
from wasmetal.nn.errors import NnErrno, NnRefusal

_ERRNOS: dict[Errno | WasiErrno, NnErrno] = {
    Errno.FAULT: NnErrno.INVALID_ARGUMENT,
    Errno.INVAL: NnErrno.INVALID_ARGUMENT,
    Errno.ILSEQ: NnErrno.INVALID_ARGUMENT,
    Errno.BADF: NnErrno.INVALID_ARGUMENT,
    Errno.MFILE: NnErrno.BUSY,
    Errno.NOMEM: NnErrno.TOO_LARGE,
    Errno.TOOBIG: NnErrno.TOO_LARGE,
    Errno.NOTSUP: NnErrno.UNSUPPORTED_OPERATION,
}


def nn_errno(error: BaseException) -> NnErrno:
    """The errno for a refusal, or an error raised below; RUNTIME_ERROR for those that the guest did not cause."""
    if isinstance(error, NnRefusal):
        return error.errno
    if isinstance(error, NoMemory):
        return NnErrno.MISSING_MEMORY
    if isinstance(error, OSError):  # of the host's files, which are none of the guest's business
        return NnErrno.RUNTIME_ERROR
    return _ERRNOS.get(errno_of(error), NnErrno.RUNTIME_ERROR)
