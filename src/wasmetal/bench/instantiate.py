"""From a module to a guest that is ready to run: how long each step takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from wasmetal.bench.timing import Spread, spread
from wasmetal.device.base import Device
from wasmetal.host.guest import Guest
from wasmetal.host.program import Program
from wasmetal.packaged import guest

COMPILATIONS = 10
REPEATS = 500


def measure(device: Device) -> dict[str, Spread]:
    """Times for the chat guest, with no model. ``instantiate`` includes closing the guest again."""
    module = guest("chat")
    with tempfile.TemporaryDirectory() as folder:
        with _environment(WASMETAL_NO_PROGRAM_CACHE="1"):
            compiled = spread(lambda: Program(module, trusted=True), COMPILATIONS)
        with _environment(WASMETAL_HOME=folder, WASMETAL_NO_PROGRAM_CACHE=None):
            loaded = spread(lambda: Program(module), REPEATS)
    program = Program(module)
    made = spread(lambda: Guest(program, device=device).close(), REPEATS)
    return {"compile": compiled, "load": loaded, "instantiate": made}


@contextmanager
def _environment(**changes: str | None) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
