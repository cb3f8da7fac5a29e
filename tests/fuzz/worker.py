"""The process that fuzzing happens in: runs case after case, and says before and after each what it does.

It ends after the first case that went wrong, because what the cases share may then be broken.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tests.fuzz.host_log import HostFailures
from tests.fuzz.target import find, generate

CEILING = 6 << 30
"""Bytes of writable memory that each process may have at all, so that no bomb takes the machine's."""


def main(job: dict[str, Any]) -> int:
    """``job``: target, device, and either seed and first or files."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (CEILING, most))
    os.environ["WASMETAL_NO_PROGRAM_CACHE"] = "1"
    failures = HostFailures()
    say = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with find(job["target"]).opened(job["device"]) as run:
        for index, data in _inputs(job):
            print(json.dumps({"begin": index}), file=say)
            start = time.monotonic()
            outcomes, wrong = None, None
            try:
                outcomes = run(data)
            except BaseException as error:  # Rust's panics are no Exceptions
                wrong = error
            if wrong := failures.first() or wrong:
                trace = "".join(traceback.format_exception(wrong))
                print(json.dumps({"wrong": _describe(wrong), "trace": trace}), file=say)
                os._exit(1)  # without the tidying that what is broken may hang in
            print(json.dumps({"done": outcomes, "seconds": time.monotonic() - start}), file=say)
    return 0


def _inputs(job: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    if "files" in job:
        yield from enumerate(Path(file).read_bytes() for file in job["files"][job["first"] :])
        return
    for index in count(job["first"]):
        yield index, generate(job["target"], job["seed"], index)


def _describe(error: BaseException) -> str:
    """The error and where it was raised, so that the same finding reads the same each time."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "wasmetal" in Path(frame.filename).parts] or frames
    first = " ".join(str(error).split())[:160]
    return f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}: {first}"


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
