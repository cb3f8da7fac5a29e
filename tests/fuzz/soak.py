"""Honest guests beside hostile ones, for as long as you like: what they compute stays right, and nothing grows.

    python -m tests.fuzz.soak --minutes 120 --device vulkan

Every 30 seconds all guests end, and a line says what the process holds then: memory, maps, descriptors, threads. It may
not hold more than after the first quarter. The exit status is 1 if it does, or if an honest guest got a wrong result.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random, SystemRandom

import numpy as np

from tests.fuzz.attacks import ATTACKS, SPIN, Stage
from tests.fuzz.crew import Crew
from tests.fuzz.faults import Faults
from tests.fuzz.host_log import HostFailures
from tests.fuzz.resources import Held
from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from wasmetal import Program, load_model, open_device
from wasmetal.host.abi import Errno
from wasmetal.models import Model

ROOM = Held(resident=48 << 20, maps=64, descriptors=5, threads=4, processes=2)
"""How much more the process may hold at the end. What an allocator keeps is not always the same; Wasmtime makes three
descriptors when a guest first waits for time or input, and ends its threads later; idle worker processes are kept, with
a descriptor each."""
ADD = 9


class Honest:
    """A guest that computes, and checks what it gets."""

    def __init__(self, crew: Crew, stage: Stage, expected: np.ndarray) -> None:
        self._crew, self._stage, self._expected = crew, stage, expected

    def __call__(self) -> str:
        start = time.monotonic()
        with Probe(self._stage.device, models={"m": self._stage.model}) as probe:
            probe.put(PAGE, np.arange(64, dtype=np.float32))
            x = tensor(probe.share(PAGE, PAGE), (64,))
            probe.run(command(ADD, x, x, x))
            assert (probe.floats(PAGE, 64) == 2 * np.arange(64)).all(), "a wrong sum"
            outcome = _logits(probe, self._stage.model, self._expected)
        self._crew.slowest = max(self._crew.slowest, time.monotonic() - start)
        return f"honest guests {outcome}"


TOKENS = [5, 6, 7, *range(40, 80)]


def _logits(probe: Probe, model: Model, expected: np.ndarray) -> str:
    probe.put(128, b"m")
    assert probe.model_open(128, 1, probe.OUT) == Errno.SUCCESS
    assert probe.session_open(probe.u32(), probe.OUT) == Errno.SUCCESS
    session = probe.u32()
    probe.put(1024, np.array(TOKENS, np.uint32))
    errno = probe.session_forward(session, 1024, len(TOKENS), 3 * PAGE)
    if errno == Errno.NOMEM:
        return "that found the cache full"
    assert errno == Errno.SUCCESS, errno
    np.testing.assert_allclose(probe.floats(3 * PAGE, model.vocab_size), expected, rtol=1e-4, atol=1e-4)
    return "served"


def attacker(stage: Stage, seed: str) -> Callable[[], str]:
    """A worker that does one attack after another."""
    random = Random(seed)

    def attack() -> str:
        act = random.choice(ATTACKS)
        return f"{act.__name__}: {act(stage, random)}"

    return attack


def grown(before: Held, now: Held) -> list[str]:
    """What the process holds more of than it may."""
    pairs = ((name, getattr(before, name), getattr(now, name), room) for name, room in vars(ROOM).items())
    return [f"{name}: {now} after {before}" for name, before, now, room in pairs if now > before + room]


def soak(minutes: float, device_name: str, seed: int, every: float) -> list[str]:
    """Run for so long; return what went wrong."""
    log = HostFailures()
    with tempfile.TemporaryDirectory() as folder, open_device(device_name) as device:
        path = write_tiny_llama(Path(folder, "tiny.gguf"), blocks=1, context=2048)
        with load_model(path, device) as model:
            with model.session() as session:
                logits = model.logits()
                session.forward(TOKENS, logits)
                expected = logits.buffer.view().view(np.float32).copy()
            crew, stage = Crew(), Stage(device, model, Faults(device), Program(SPIN))
            attackers = [attacker(stage, f"{seed} {i}") for i in range(3)]
            crew.start([Honest(crew, stage, expected), Honest(crew, stage, expected), *attackers])
            return _watch(crew, model, log, 60 * minutes, every)


def _watch(crew: Crew, model: Model, log: HostFailures, seconds: float, every: float) -> list[str]:
    begin, before, wrong = time.monotonic(), None, []
    while not wrong and (elapsed := time.monotonic() - begin) < seconds:
        time.sleep(min(every, seconds - elapsed + 0.1))
        now = crew.rest(Held.now)
        elapsed = time.monotonic() - begin
        done = f"{crew.counts.total()} guests, slowest honest one {crew.slowest:.1f} s"
        print(f"{elapsed:6.0f} s: {now}; {model.cache.free} pages of the cache free; {done}", flush=True)
        wrong = crew.failures[:3]
        if failure := log.first():
            wrong.append("".join(traceback.format_exception(failure)))
        if before is None and elapsed >= seconds / 4:
            before = now
    if before:
        wrong += grown(before, now)
    crew.stop()
    print(dict(sorted(crew.counts.items())), flush=True)
    return wrong


def _one_heap() -> None:
    """Have glibc use one heap: every thread of a guest may get another, and what those keep would look like a leak."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-8, 1)  # M_ARENA_MAX


def main() -> int:
    """What the command line asks for."""
    parser = argparse.ArgumentParser("python -m tests.fuzz.soak", description="Honest guests beside hostile ones.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, help="of the attacks (default: another one each time)")
    parser.add_argument("--every", type=float, default=30, help="seconds between two measurements")
    options = parser.parse_args()
    faulthandler.enable()
    _one_heap()
    gc.set_threshold(20)  # finalizers run often, and so at every place where they can
    os.environ["WASMETAL_NO_PROGRAM_CACHE"] = "1"
    seed = SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"{options.device}, seed {seed}", flush=True)
    wrong = soak(options.minutes, options.device, seed, options.every)
    for each in wrong:
        print("WRONG", each, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
