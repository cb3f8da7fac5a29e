"""Every error that wasmetal raises on purpose.

Each message is one line that says what went wrong and what to do; the command line prints it unchanged.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    """At most 500 characters of a text from outside, with U+FFFD for control characters: a terminal would obey them."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:500])


class WasmetalError(Exception):
    """Base of all errors below."""


class ForkedError(WasmetalError):
    """A device, model, session or guest was used in a process that was forked after it was opened."""


class ActorBusyError(WasmetalError):
    """Too many messages wait for an actor, or in its host: send this one later."""


class AlreadyHandledError(WasmetalError):
    """A message with this key was handled, and its reply is no longer kept."""


class MemoryRefusedError(WasmetalError):
    """Pages could not be reserved, committed or shared: a limit, or the operating system's refusal."""


class MemorySizeError(MemoryRefusedError):
    """A linear memory is larger than the guest may have."""


class MemoryCountError(MemoryRefusedError):
    """A module has more linear memories than the guest may have."""


class AddressSpaceError(MemoryRefusedError):
    """The process has no address space left for a reservation."""


class DeviceError(WasmetalError):
    """A device could not do what was asked."""


class DeviceNotFoundError(DeviceError):
    """No driver, no device of that kind, or no device of that index."""


class DeviceLostError(DeviceError):
    """The device stopped answering; its buffers and command lists are gone."""


class OutOfDeviceMemoryError(DeviceError):
    """The device has no room for an allocation."""


class WrapRefusedError(DeviceError):
    """The driver refused host pages, because of their alignment, protection or size."""


class DeviceTimeoutError(DeviceError):
    """A submission did not complete within the timeout."""


class OpError(WasmetalError):
    """Tensors that an op cannot take: shape, dtype, alignment or aliasing."""


class ModelError(WasmetalError):
    """A model file, tokenizer or chat template that cannot be used."""


class GuestError(WasmetalError):
    """A guest module that cannot be loaded, linked or run."""


class GuestTrapError(GuestError):
    """The guest trapped."""


class LimitError(GuestError):
    """The guest reached one of its limits; the message names it."""


class SnapshotError(WasmetalError):
    """A snapshot of an actor that cannot be made, stored, read or thawed; the message names what is in the way."""


class ClusterError(WasmetalError):
    """A cluster that cannot be started or reached, or whose nodes cannot do what was asked."""


class NoSnapshotError(SnapshotError):
    """There is no snapshot of an actor."""


@contextmanager
def setting_up(what: str, kind: type[WasmetalError] = WasmetalError) -> Iterator[None]:
    """Turn the system's refusals, for example of another open file, into errors of a kind: "cannot ``what``: ..."."""
    try:
        yield
    except (OSError, ImportError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        hint = (
            "; close files, or raise `ulimit -n`" if getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE) else ""
        )
        raise kind(f"cannot {what}: {reason}{hint}") from error
