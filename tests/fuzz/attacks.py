"""What hostile guests do beside honest ones in a soak: each is a function, and returns what came of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import wasmtime

from tests.fuzz.faults import Faults
from tests.fuzz.targets import host_calls, modules
from tests.host.probe import PAGE, Probe, command, tensor
from tests.security.hanging import HangingDevice
from wasmetal import Guest, Limits, Program
from wasmetal.device import Device, abandoned
from wasmetal.errors import WasmetalError
from wasmetal.host import abi
from wasmetal.host.abi import Errno
from wasmetal.models import Model

ADD = 9
SPIN = bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'))


@dataclass(frozen=True)
class Stage:
    """What the attackers attack."""

    device: Device
    model: Model
    faults: Faults
    spin: Program

    def busy(self) -> Probe:
        """A guest with everything open, in the middle of submissions."""
        limits = Limits(wall_seconds=20, device_bytes=8 << 20, handles=64)
        probe = Probe(self.device, models={"m": self.model}, limits=limits)
        probe.put(128, b"m")
        assert probe.model_open(128, 1, probe.OUT) == Errno.SUCCESS
        assert probe.session_open(probe.u32(), probe.OUT) == Errno.SUCCESS
        session = probe.u32()
        probe.put(256, np.arange(5, 25, dtype=np.uint32))
        probe.session_forward(session, 256, 20, 2 * PAGE)  # there may be no room in the cache
        probe.session_fork(session, probe.OUT)
        shared, own = tensor(probe.share(), (64,)), tensor(probe.allocate(4096), (64,))
        probe.start(command(ADD, own, own, own))
        probe.start(command(ADD, shared, shared, shared))
        return probe


def arbitrary_calls(stage: Stage, random: Random) -> str:
    """Host calls with hostile arguments."""
    host_calls.attack(json.loads(host_calls.generate(random)), stage.device, stage.model)
    return "done"


def arbitrary_module(stage: Stage, random: Random) -> str:
    """A module made at random."""
    return modules.outcome(modules.generate(random), stage.device)


def trap(stage: Stage, random: Random) -> str:
    """A trap with everything open."""
    return _ended(stage, lambda guest: guest.call("trap"))


def close(stage: Stage, random: Random) -> str:
    """Closed in the middle of submissions."""
    return _ended(stage, Guest.close)


def drop(stage: Stage, random: Random) -> str:
    """Dropped, in a reference cycle, without being closed."""
    cycle: list[Any] = [stage.busy()]
    cycle.append(cycle)
    return "done"


def spin(stage: Stage, random: Random) -> str:
    """An endless loop until the time is up."""
    with Guest(stage.spin, limits=Limits(wall_seconds=0.05)) as guest:
        return _outcome(guest.run)


def stop(stage: Stage, random: Random) -> str:
    """Stopped, or closed, from another thread."""
    with Guest(stage.spin) as guest:
        timer = threading.Timer(random.random() / 10, random.choice([guest.stop, guest.close]))
        timer.start()
        try:
            return _outcome(guest.run)
        finally:
            timer.join()


def fail(stage: Stage, random: Random) -> str:
    """Submissions and forward passes that the device fails."""
    with stage.busy() as probe:
        x = tensor(probe.share(5 * PAGE, PAGE), (64,))

        def work() -> None:
            with stage.faults.injected(random):
                for _ in range(10):
                    if probe.try_submit(command(ADD, x, x, x)) == Errno.SUCCESS:
                        probe.submission_wait(probe.u32(), abi.FOREVER)
                    probe.session_forward(probe.u32(), 256, 1, 2 * PAGE)

        return _outcome(lambda: probe.enter(work))


def lose(stage: Stage, random: Random) -> str:
    """A device of its own that does not come back before it is closed, and a guest that has given it work."""
    device = HangingDevice()
    with Probe(device, limits=Limits(wall_seconds=20)) as probe:
        x = tensor(random.choice([probe.share, lambda: probe.allocate(4096)])(), (64,))
        device.answers.clear()
        submission = probe.start(command(ADD, x, x, x))
        outcome = "left"
        if random.random() < 0.5:
            threading.Timer(0.2, probe.guest.stop).start()
            outcome = _outcome(lambda: probe.submission_wait(submission, abi.FOREVER))
    device.close()
    device.answers.set()
    abandoned.release_ended()
    return outcome


ATTACKS: tuple[Callable[[Stage, Random], str], ...] = (
    *(arbitrary_calls, arbitrary_calls, arbitrary_module, arbitrary_module, trap, close, drop, spin, stop, fail, lose),
)


def _ended(stage: Stage, end: Callable[[Guest], object]) -> str:
    with stage.busy() as probe:
        return _outcome(lambda: end(probe.guest))


def _outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except WasmetalError as error:
        return type(error).__name__
    return "done"
