"""What backends of wasi-nn may use of a guest, and the backends that it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from wasmetal.device import Device
from wasmetal.device.base import Submission
from wasmetal.host.account import Account
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.metering import MeteredDevice
from wasmetal.host.runtime import runtime
from wasmetal.nn.backend import Backend, Services
from wasmetal.nn.errors import NnErrno, NnRefusal
from wasmetal.nn.kinds import Backends, Kind


def services(
    account: Account, interrupt: Interrupt, device: MeteredDevice | None, write: Callable[[bytes], object]
) -> Services:
    """What a guest's backends may use. ``device``: None if the guest has none."""

    ticker = runtime().ticker

    @contextmanager
    def stoppable(stop: Callable[[], None]) -> Iterator[None]:
        begin = time.monotonic()

        def look() -> None:
            if interrupt.due(time.monotonic() - begin):
                stop()

        watch = ticker.watch(look)
        try:
            yield
        finally:
            ticker.forget(watch)
            account.counters.count_submission(time.monotonic() - begin, 1)
            interrupt.check()
            account.check_device_time()

    def drive(steps: Generator[Submission | None]) -> None:
        if device is None:
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "the guest has no device")
        device.drive(steps)

    return Services(account.counters, account.charge, account.room, stoppable, drive, write)


def backends(services: Services, device: Device | None, loading: Mapping[str, Any]) -> Backends:
    """The backends for the models that are granted to a guest. ``loading``: options of :func:`load_model`."""
    makers: dict[Kind, Callable[[], Backend]] = {}
    if device is not None:
        makers[Kind.GGML] = lambda: _ggml(device, services, loading)
    if find_spec("onnxruntime"):
        makers[Kind.ONNX] = lambda: _onnx(services)
    if find_spec("ai_edge_litert"):
        makers[Kind.TFLITE] = lambda: _tflite(services)
    return Backends(makers)


def _tflite(services: Services) -> Backend:
    from wasmetal.nn.tflite.backend import TfliteBackend  # noqa: PLC0415 (an extra)

    return TfliteBackend(services)


def _onnx(services: Services) -> Backend:
    from wasmetal.nn.onnx.backend import OnnxBackend  # noqa: PLC0415 (an extra)

    return OnnxBackend(services)


def _ggml(device: Device, services: Services, loading: Mapping[str, Any]) -> Backend:
    from wasmetal.nn.ggml.backend import GgmlBackend  # noqa: PLC0415 (slow to import, and few guests need it)

    return GgmlBackend(device, services, loading)
