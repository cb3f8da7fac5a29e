"""What a guest can make the host write to its log."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.host.probe import PAGE, Probe
from tests.security.wasi_probe import OUT, WasiProbe
from wasmetal.device import Device
from wasmetal.host.errno import Errno
from wasmetal.host.functions.gpu import Gpu


def failing(errors: list[BaseException]) -> Any:
    def fail(*_: object) -> None:
        raise errors[0]

    return fail


def test_a_failure_is_logged_once(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For each guest, function and kind of error: one line, which the guest cannot format."""
    errors: list[BaseException] = [ValueError(f"bad\nnews\x1b[31m{'x' * 10_000}")]
    monkeypatch.setattr(Gpu, "counters_read", failing(errors))
    monkeypatch.setattr(Gpu, "device_describe", failing(errors))
    with caplog.at_level(logging.INFO, "wasmetal.guest"), Probe(device) as first, Probe(device) as second:
        for _ in range(50):
            assert first.counters_read(128) == Errno.IO
        assert len(caplog.records) == 1
        message = caplog.records[0].getMessage()
        assert message.startswith("wasmetal_gpu.counters_read: ValueError: bad news")
        assert message.isprintable()
        assert len(message) < 1000
        assert caplog.records[0].exc_info is None
        first.device_describe(128)
        second.counters_read(128)
        assert len(caplog.records) == 3
        errors[0] = KeyError("another kind")
        first.counters_read(128)
        first.counters_read(128)
        assert len(caplog.records) == 4


def test_tracebacks_are_for_debugging(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Gpu, "counters_read", failing([ValueError("bad")]))
    with caplog.at_level(logging.DEBUG, "wasmetal.guest"), Probe(device) as probe:
        probe.counters_read(128)
        probe.counters_read(128)
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.DEBUG] * 2


def test_refusals_are_not_logged(device: Device, caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    with caplog.at_level(logging.INFO, "wasmetal.guest"), Probe(device) as probe:
        assert probe.buffer_create(1, PAGE, 3, probe.OUT) == Errno.INVAL
    with caplog.at_level(logging.INFO, "wasmetal.guest"), WasiProbe({"/d": tmp_path}) as files:
        for path in ("none", "../x", "a" * 300):
            with pytest.raises(OSError, match=r"NOENT|PERM|NAMETOOLONG"):
                files.open(path)
        with pytest.raises(OSError, match="BADF"):
            files.fd_seek(77, 0, 0, OUT)
    assert caplog.records == []
