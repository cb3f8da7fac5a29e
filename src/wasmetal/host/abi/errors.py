"""The errnos."""

from __future__ import annotations

from wasmetal.documented import Documented


class Errno(Documented):
    """What a host function returns: the numbers of WASI preview 1, so that a C library's ``strerror`` knows them."""

    SUCCESS = 0, "Done."
    TOOBIG = 1, "Too many commands or too much work in a list, or more than 256 KiB of text or 2^18 tokens in a call."
    AGAIN = 6, "Too many commands, or too much work, are pending: wait for a submission first."
    BADF = 8, "No such handle."
    BUSY = 10, "A pending submission uses it."
    FAULT = 21, "A pointer, or its length, leaves the guest's memory."
    ILSEQ = 25, "The text is not UTF-8."
    INVAL = 28, "A value that the call does not accept: misaligned, out of range, an impossible tensor."
    IO = 29, "The host failed; its log says why."
    MFILE = 33, "The guest's limit on handles is reached."
    NODEV = 43, "The device is lost."
    NOENT = 44, "No model of that name was granted to the guest."
    NOMEM = 48, "The guest's limit on device memory is reached, or the device has no more."
    NOTSUP = 58, "An op, dtype or page range that is not supported here; or the guest is no actor."
    OVERFLOW = 61, "The output does not fit, or the model's context is full."
    PERM = 63, "The buffer's usage does not allow what the command does with it."
    TIMEDOUT = 73, "The submission is still pending."
