"""The host's time for each token that guests decode, on a device that computes nothing.

    python -m benchmarks.host_time --guests 1,16,64

Chat guests decode on a small model with random weights. A submission ends after as long as one of a 1B model takes an
H200 (``--device-us``), or at once (``--device-us 0,0,0``); nobody computes it, so processors are busy with nothing but
what the host and the guests do, and waiting. The tokens are no model's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ours, random_model
from wasmetal import load_model
from wasmetal.device.backend import Work
from wasmetal.device.base import Submission
from wasmetal.device.cpu.device import CpuBackend
from wasmetal.device.cpu.library import library
from wasmetal.device.cpu.work import CpuRecording
from wasmetal.device.opened import OpenDevice
from wasmetal.device.waiting import poll
from wasmetal.models import Model
from wasmetal.models.lm.jobs import Job
from wasmetal.models.lm.passes import Pass

H200_US = "1000,1900,27"
_CALLS = 10
"""Of a driver, for a submission. Each lets go of Python's lock for a moment."""
_abs = ctypes.CDLL(None).abs


class NoWork(Work):
    """Ends by the clock."""

    def __init__(self, begin: float, seconds: float) -> None:
        self._seconds = seconds
        self.end = begin + seconds

    def wait(self, seconds: float) -> bool:
        """Wait as for a GPU."""
        return poll(self.ended, seconds, self.patient)

    def ended(self) -> bool:
        """Whether it would have ended."""
        _abs(0)  # lets go of Python's lock for a moment, as a driver's call does
        return time.perf_counter() >= self.end

    def result(self) -> tuple[float, None]:
        """Seconds, and no error."""
        return self._seconds, None


class NoBackend(CpuBackend):
    """Takes command lists, and computes nothing."""

    def __init__(self) -> None:
        super().__init__(library())
        self.info = replace(self.info, wraps_files=False)  # a trial would find that nothing is computed
        self.seconds = 0.0
        """What the next submissions take."""
        self._last = 0.0

    def start(self, recordings: Sequence[CpuRecording]) -> NoWork:  # type: ignore[override]
        """Start them after all earlier work."""
        for _ in range(_CALLS):
            _abs(0)
        work = NoWork(max(time.perf_counter(), self._last), self.seconds)
        self._last = work.end
        return work


@dataclass
class Figures:
    """What so many guests at once have come to."""

    guests: int
    tokens_s: float
    """From when all begin to decode until all have done so."""
    wall_us: float
    """For each token."""
    processor_us: float
    """Of all threads, for each token: guests and waiting included."""
    rows: float
    """In a batch, on average."""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--guests", default="1,16,64", help="how many at once, each on a thread of its own")
    parser.add_argument("--tokens", type=int, default=100, help="for each guest to decode, 10 times as many if alone")
    parser.add_argument("--rounds", type=int, default=3, help="the one with the most tokens a second is shown")
    parser.add_argument(
        "--device-us",
        default=H200_US,
        help=f"µs of a submission with one row, and of one with more, and more for each of those; default: {H200_US}",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    one, more, each = (float(part) * 1e-6 for part in options.device_us.split(","))
    with TemporaryDirectory() as folder:
        path = Path(folder, "tiny.gguf")
        random_model.write(path, "Q8_0", "tiny")
        figures = [
            max((measure(path, guests, options.tokens, (one, more, each)) for _ in range(options.rounds)), key=_speed)
            for guests in map(int, options.guests.split(","))
        ]
    if options.json:
        json.dump({"device_us": options.device_us, "results": [asdict(some) for some in figures]}, sys.stdout, indent=1)
        print()
        return
    print("guests  tokens/s  wall µs/token  processor µs/token  rows/batch")
    for some in figures:
        print(
            f"{some.guests:6}  {some.tokens_s:8.0f}  {some.wall_us:13.0f}  {some.processor_us:18.0f}  {some.rows:10.1f}"
        )


def _speed(figures: Figures) -> float:
    return figures.tokens_s


def measure(path: Path, guests: int, tokens: int, seconds: tuple[float, float, float]) -> Figures:
    """Have guests decode. ``seconds``: of a submission with one row; of one with more, and for each of those."""
    backend = NoBackend()
    tokens *= 10 if guests == 1 else 1
    context = ours.PROMPT_S + max(tokens, ours.WARM_UP) + 1
    device = OpenDevice(backend)
    with device, load_model(path, device, context=context, contexts=guests + 1) as model:
        ours.decode(model, guests, ours.WARM_UP)
        rows = time_batches(model, backend, seconds)
        marks: list[tuple[float, float]] = []
        ours.decode(model, guests, tokens, lambda: marks.append((time.perf_counter(), time.process_time())))
        (begin, before), (end, after) = marks
        wall, processor = end - begin, after - before
        batches = [count for when, count in rows if begin <= when]
        return Figures(
            guests, tokens * guests / wall, wall / tokens / guests * 1e6, processor / tokens / guests * 1e6,
            sum(batches) / len(batches),
        )  # fmt: skip


def time_batches(model: Model, backend: NoBackend, seconds: tuple[float, float, float]) -> list[tuple[float, int]]:
    """Have batches take their time from now on; return when each is started, and its rows."""
    started: list[tuple[float, int]] = []
    start = model._scheduler._start
    one, more, each = seconds

    def timed(taken: Pass, jobs: Sequence[Job]) -> Submission:
        rows = sum(job.rows for job in jobs)
        steps = max(job.draws.steps if job.draws else 1 for job in jobs)
        backend.seconds = steps * (one if rows == 1 else more + each * rows)
        started.append((time.perf_counter(), rows))
        return start(taken, jobs)

    model._scheduler._start = timed
    return started


if __name__ == "__main__":
    main()
