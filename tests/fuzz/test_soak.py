"""The soak: a short one, and that it fails when it should."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.faults import Faults
from tests.fuzz.resources import Held
from tests.fuzz.soak import ROOM, grown
from tests.host.probe import PAGE, Probe, command, tensor
from wasmetal import open_device
from wasmetal.host.abi import FOREVER, Errno

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("device", ["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def test_a_short_soak(request: pytest.FixtureRequest, device: str) -> None:
    if device != "cpu":
        request.getfixturevalue(device)  # skips, or fails, if there is none
    command = [sys.executable, "-m", "tests.fuzz.soak", "--minutes", "0.4", "--every", "4", "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "honest guests served" in done.stdout


def test_growth_is_found() -> None:
    held = Held.now()
    with contextlib.ExitStack() as files:
        for _ in range(ROOM.descriptors + 1):
            files.enter_context(open("/dev/null", "rb"))
        (found,) = [each for each in grown(held, Held.now()) if each.startswith("descriptors")]
    assert found == f"descriptors: {held.descriptors + ROOM.descriptors + 1} after {held.descriptors}"
    more = replace(held, resident=held.resident + ROOM.resident + 1, threads=held.threads + ROOM.threads + 1)
    assert [each.split(":")[0] for each in grown(held, more)] == ["resident", "threads"]


def test_faults_hit_the_thread_that_they_are_injected_on() -> None:
    with open_device("cpu") as device, Probe(device) as honest, Probe(device) as victim:
        faults = Faults(device)
        x, y = tensor(honest.share(), (4,)), tensor(victim.share(PAGE, PAGE), (4,))
        outcomes = set()

        def work() -> None:
            with faults.injected(Random(1)):
                for _ in range(20):
                    victim.start(command(9, y, y, y))
                    outcomes.add(victim.submission_wait(victim.u32(), FOREVER))
                    honest.run(command(9, x, x, x))

        victim.enter(work)
        assert outcomes == {Errno.SUCCESS, Errno.IO}
        victim.run(command(9, y, y, y))


def test_a_deadlock_is_found() -> None:
    """It ends the process, which says where each thread is."""
    code = """
import threading
from tests.fuzz import crew
from tests.fuzz.resources import Held
crew.PATIENCE = 1.0
team = crew.Crew()
team.start([threading.Event().wait])
team.rest(Held.now)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "WRONG: not all have finished" in done.stderr
    assert "in _repeat" in done.stderr
