"""Submissions that fail, for the guests of some threads only."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

from tests.fuzz.host_log import ON_PURPOSE
from wasmetal.device import Device
from wasmetal.errors import DeviceError


class Faults:
    """Makes submissions of a device fail that are started within :meth:`injected`: at once, or when they end."""

    def __init__(self, device: Device) -> None:
        self._here = threading.local()
        backend: Any = device.backend  # type: ignore[attr-defined]
        self._start = backend.start
        backend.start = self._started

    @contextmanager
    def injected(self, random: Random) -> Iterator[None]:
        """On this thread, for as long as it is entered, about half of the submissions fail."""
        self._here.random = random
        try:
            yield
        finally:
            self._here.random = None

    def _started(self, recordings: Sequence[Any]) -> Any:
        random = getattr(self._here, "random", None)
        outcome = random.random() if random else 1.0
        if outcome < 0.25:
            raise DeviceError(f"a submission that fails {ON_PURPOSE}")
        work = self._start(recordings)
        return _Failed(work) if outcome < 0.5 else work


class _Failed:
    """Work that ends like any other, and then turns out to have failed."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def result(self) -> tuple[float, Exception | None]:
        seconds, _ = self._work.result()
        return seconds, DeviceError(f"work that fails {ON_PURPOSE}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
