"""Modules: valid ones made at random, and damaged copies of them and of the project's own guests.

An input is a module. It is compiled, instantiated under small limits and run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

import wasmtime

from tests.fuzz import noise, wat
from tests.fuzz.target import Run, refusal
from tests.host.probe import PAGE, Probe
from wasmetal import Guest, Limits, Program, open_device
from wasmetal.device import Device
from wasmetal.errors import WasmetalError
from wasmetal.host.abi import Errno

SECONDS = 60.0
MEMORY = 2 << 30

POISON = 0xA5
GUESTS = Path(__file__).parents[3] / "guests"
LIMITS = Limits(memory_bytes=4 << 20, device_bytes=1 << 20, handles=16, commands=64, wall_seconds=0.2)


def generate(random: Random) -> bytes:
    if random.random() < 0.2:
        guest = random.choice(_guests())
        return noise.mutated(random, guest, random.choice([200, 2000, len(guest)]))
    module = bytes(wasmtime.wat2wasm(wat.module(random)))
    return noise.mutated(random, module) if random.random() < 0.4 else module


@cache
def _guests() -> list[bytes]:
    return [path.read_bytes() for path in sorted(GUESTS.glob("*.wasm"))]


@contextmanager
def opened(device: str) -> Iterator[Run]:
    with open_device(device) as opened_device, Probe(opened_device) as neighbour:
        neighbour.bytes[:] = POISON
        buffer = neighbour.allocate(4096)
        assert neighbour.buffer_write(buffer, 0, PAGE, 4096) == Errno.SUCCESS
        neighbour.bytes[:] = POISON

        def run(module: bytes) -> Counter[str]:
            outcomes = Counter([outcome(module, opened_device)])
            assert (neighbour.bytes == POISON).all(), "a neighbour's memory has changed"
            return outcomes

        yield run
        neighbour.bytes[:] = 0
        assert neighbour.buffer_read(buffer, 0, PAGE, 4096) == Errno.SUCCESS
        assert (neighbour.bytes[PAGE : PAGE + 4096] == POISON).all(), "a neighbour's device buffer has changed"


def outcome(module: bytes, device: Device) -> str:
    """Compile, instantiate and run a module; return how far it came."""
    stage = "compile"
    try:
        program = Program(module)
        stage = "instantiate"
        with Guest(program, device=device, limits=LIMITS) as guest:
            stage = "run"
            guest.run()
    except WasmetalError as error:
        return refusal(stage, error)
    return "ran"
