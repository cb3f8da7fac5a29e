"""Nothing but a WasmetalError comes of what a guest does, whatever goes wrong in the host."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.probe import Probe
from wasmetal.device import Device
from wasmetal.errors import LimitError
from wasmetal.host.errno import Errno
from wasmetal.host.functions.gpu import Gpu
from wasmetal.host.interrupt import Interrupt


class Panic(BaseException):
    """As pyo3 raises them: ``except Exception`` does not catch it."""


def failing(error: BaseException) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "errno"),
    [
        (Panic("of a package in Rust"), Errno.IO),
        (RecursionError("too deep"), Errno.IO),
        (MemoryError(), Errno.IO),
        (GeneratorExit(), Errno.IO),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), Errno.IO),
        (OSError(24, "Too many open files"), Errno.MFILE),
        (OSError(9999, "of another kind"), Errno.IO),
        (OSError("no number"), Errno.IO),
    ],
    ids=repr,
)
def test_a_failing_host_function(
    error: BaseException, errno: Errno, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the guest an errno, and the guest goes on."""
    with Probe(device) as probe:
        with monkeypatch.context() as patch:
            patch.setattr(Gpu, "counters_read", failing(error))
            assert probe.counters_read(128) == errno
        assert probe.counters_read(128) == Errno.SUCCESS


def test_a_limit_ends_the_run(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gpu, "counters_read", failing(LimitError("limit reached: 7 somethings")))
    with Probe(device) as probe, pytest.raises(LimitError, match="7 somethings"):
        probe.counters_read(128)


def test_whatever_the_reason_was_ends_the_run(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also an embedder's own exception, which it gets back as it is."""
    reason = Panic("the embedder's")
    with Probe(device) as probe:
        interrupt: Interrupt = probe.guest._interrupt

        def fail(*_: object) -> None:
            interrupt.stop(reason)
            interrupt.check()

        monkeypatch.setattr(Gpu, "counters_read", fail)
        with pytest.raises(Panic, match="the embedder's"):
            probe.counters_read(128)
