"""Runs a target's cases in a process of their own, and turns what becomes of that process into findings."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz import target
from tests.fuzz.resources import family, resident

ROOT = Path(__file__).parents[2]
START = 180.0
"""Seconds that opening the device and loading the model may take on a busy machine."""
EXAMPLES = 2
"""Findings of a kind that are kept; the others are counted."""
_GLANCE = 0.1
"""Seconds between two looks at the process's memory."""


@dataclass(frozen=True)
class Finding:
    """A case that did what no case may do."""

    target: str
    device: str
    what: str
    source: str
    """The seed and index, or the file, that the input comes from."""
    data: bytes
    trace: str

    def kind(self) -> str:
        """What happened, without the numbers: cases that agree in it show the same mistake."""
        return re.sub(r"\d+", "N", self.what)

    def save(self, folder: Path) -> Path:
        """Write the input, and beside it what happened and how to reproduce it. Returns the input's path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.target}-{self.device}-{self.source.replace(' ', '-').replace('/', '-')}"
        path.write_bytes(self.data)
        again = f"python -m tests.fuzz {self.target} --device {self.device} --replay {path}"
        path.with_name(path.name + ".txt").write_text(
            f"{self.what}\nfrom {self.source}\nreproduce: {again}\n\n{self.trace}\n"
        )
        return path


@dataclass
class Result:
    """What a run came to."""

    target: str
    device: str
    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    most_memory: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    """How many findings of each kind."""
    examples: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Count a finding; keep it unless there are enough of its kind."""
        self.found[finding.kind()] += 1
        if self.found[finding.kind()] <= EXAMPLES:
            self.examples.append(finding)

    def line(self) -> str:
        """One line of it."""
        calls = sum(n for what, n in self.outcomes.items() if what.startswith("calls of "))
        return (
            f"{self.target} on {self.device}: {self.cases} cases in {self.seconds:.0f} s "
            f"({self.cases / max(self.seconds, 1e-9):.0f}/s), "
            + (f"{calls} host calls ({calls / max(self.seconds, 1e-9):.0f}/s), " if calls else "")
            + f"slowest {self.slowest:.2f} s, at most {self.most_memory >> 20} MiB, {self.found.total()} findings"
        )


def fuzz(
    name: str, device: str, seconds: float, seed: int, progress: Callable[[Result], None] = lambda result: None
) -> Result:
    """Run cases for so many seconds, not counting the start of each process."""
    result = Result(name, device)
    first = 0
    while result.seconds < seconds:
        first = _watch(result, {"seed": seed, "first": first}, seconds, progress)
    return result


def replay(name: str, device: str, files: Sequence[Path]) -> Result:
    """Run the cases in these files."""
    result = Result(name, device)
    paths = [str(file.resolve()) for file in files]
    first = 0
    while first < len(paths):
        first += _watch(result, {"files": paths, "first": first}, float("inf"), lambda _: None)
    return result


def _watch(result: Result, inputs: dict[str, Any], seconds: float, progress: Callable[[Result], None]) -> int:
    """Run one worker until it ends or the time is up. Adds to the result; returns the index to go on with."""
    limits = target.find(result.target)
    job = {"target": result.target, "device": result.device, **inputs}
    next_index = current = inputs["first"] if "seed" in inputs else 0
    running, began, wrong, trace = False, time.monotonic(), "", ""
    with _worker(job) as (process, lines, errors):
        for line in lines:
            now = time.monotonic()
            if line is None:
                result.most_memory = max(result.most_memory, used := resident(family(process.pid)))
                if now - began > (limits.SECONDS if running else START):
                    wrong = f"still running after {now - began:.0f} s"
                elif used > limits.MEMORY:
                    wrong = f"{used >> 20} MiB resident; at most {limits.MEMORY >> 20} MiB are expected"
                if wrong:
                    break
                continue
            event = json.loads(line)
            if "begin" in event:
                running, current, began, next_index = True, event["begin"], now, event["begin"] + 1
                continue
            running = False
            result.seconds += now - began
            began = now
            if "wrong" in event:
                wrong, trace = event["wrong"], event["trace"]
                break
            result.cases += 1
            result.slowest = max(result.slowest, event["seconds"])
            result.outcomes.update(event["done"])
            progress(result)
            if result.seconds >= seconds:
                break
        else:
            if (status := process.wait()) or running:
                wrong = f"the process ended with status {status}"
        trace = trace or errors()
    if wrong:
        if running:
            result.seconds += time.monotonic() - began
        result.add(_finding(result, inputs, current, wrong, trace))
        next_index = current + 1
    return next_index


def _finding(result: Result, inputs: dict[str, Any], index: int, wrong: str, trace: str) -> Finding:
    if "files" in inputs:
        source = inputs["files"][inputs["first"] + index]
        data = Path(source).read_bytes()
    else:
        source = f"seed {inputs['seed']} case {index}"
        data = target.generate(result.target, inputs["seed"], index)
    return Finding(result.target, result.device, wrong, source, data, trace)


@contextmanager
def _worker(
    job: dict[str, Any],
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[str | None], Callable[[], str]]]:
    """A worker in a session of its own, its lines as they come (None: nothing for a while), and what it complained."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", json.dumps(job)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )

        def errors() -> str:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 8000))
            return log.read().decode(errors="replace")

        try:
            yield process, _lines(process), errors
        finally:
            if process.poll() is None:
                for pid in family(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            process.wait()
            assert process.stdout
            process.stdout.close()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    assert process.stdout
    pipe, rest, looked = process.stdout.fileno(), b"", 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if (now := time.monotonic()) - looked > _GLANCE:
                looked = now
                yield None
            if not selector.select(_GLANCE):
                continue
            if not (data := os.read(pipe, 1 << 16)):
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from (line.decode() for line in lines)
