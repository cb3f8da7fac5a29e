"""A target that goes wrong when its input says so, for the tests of the driver. It is not among the names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.fuzz.target import Run

SECONDS = 5.0
MEMORY = 400 << 20


def generate(random: Random) -> bytes:
    return random.choice([b"good", b"raise"])


@contextmanager
def opened(device: str) -> Iterator[Run]:
    yield _run


def _run(data: bytes) -> Counter[str]:
    if data == b"raise":
        raise ValueError(f"{time.monotonic_ns()} things")
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang":
        time.sleep(1000)
    if data == b"swell":
        swell = "held = bytearray(b'x') * (600 << 20); import time; time.sleep(1000)"
        subprocess.run([sys.executable, "-c", swell], start_new_session=True, check=False)
    return Counter(["good"])
