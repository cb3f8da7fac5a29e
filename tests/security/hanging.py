"""A device that stops answering when the test says so, and answers again."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wasmetal.device.backend import Dispatch
from wasmetal.device.cpu.device import CpuBackend
from wasmetal.device.cpu.memory import Pages
from wasmetal.device.cpu.work import CpuRecording, CpuWork, Step
from wasmetal.device.opened import OpenDevice


class HangingWork:
    """Work that a driver has taken on: it runs to its end once the device answers, whoever waits for it or not."""

    def __init__(self, work: CpuWork, answers: threading.Event) -> None:
        self._work = work
        self._answers = answers

    def wait(self, seconds: float) -> bool:
        return self._answers.wait(seconds) and self._work.wait(60)

    def ended(self) -> bool:
        return self._answers.is_set() and self._work.wait(60)

    def result(self) -> tuple[float, Exception | None]:
        return self._work.result()

    def drop(self) -> None:
        """Do nothing: what has been given to the device runs."""


class HangingRecording(CpuRecording):
    def close(self) -> None:
        """Do nothing: what has been given to the device runs."""


class HangingBackend(CpuBackend):
    """NumPy kernels on a queue that can get stuck, as a GPU's can."""

    in_order = True

    def __init__(self) -> None:
        super().__init__(None)
        self.answers = threading.Event()
        self.answers.set()

    def build(self, dispatches: Sequence[Dispatch[Pages, Step]]) -> CpuRecording:
        return HangingRecording(dispatches)

    def start(self, recordings: Sequence[CpuRecording]) -> HangingWork:  # type: ignore[override]
        return HangingWork(super().start(recordings), self.answers)


class HangingDevice(OpenDevice):
    """``answers`` is cleared to make it hang."""

    def __init__(self) -> None:
        backend = HangingBackend()
        super().__init__(backend)
        self.answers = backend.answers
