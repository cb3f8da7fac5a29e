"""Emulated GPUs with a device on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from metal.devices import EMULATED
from metal.standin import Gpu, installed
from wasmetal.device import Device, open_device


@pytest.fixture
def gpu() -> Gpu:
    """The emulated GPU of ``emulated``. Tests change it."""
    return Gpu()


@pytest.fixture
def emulated(gpu: Gpu, open_on: Callable[[Gpu], Device]) -> Device:
    """A device on ``gpu``."""
    return open_on(gpu)


@pytest.fixture
def open_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Gpu], Device]]:
    """Opens emulated GPUs, with a pipeline archive of the test's own, and closes them in the end."""
    if not EMULATED:
        pytest.skip("on a Mac Metal is not emulated")
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    with ExitStack() as stack:

        def open_it(gpu: Gpu) -> Device:
            with installed(gpu):
                return stack.enter_context(open_device("metal"))

        yield open_it


LAYERS = {
    "1, kernels on the CPU shim": lambda name: "test_kernels_on_shim.py::" in name,
    "2, emulated Metal": lambda name: EMULATED and ("emulated metal" in name or "metal/test_metal_" in name),
    "3, this Mac's GPU": lambda name: not EMULATED and ("[metal" in name or "metal/test_metal_" in name),
}
"""What each layer of proof is called, and the tests that make it up (docs/metal.md)."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("Metal")
    passed, failed = (terminalreporter.getreports(outcome) for outcome in ("passed", "failed"))
    for layer, has in LAYERS.items():
        good, bad = (sum(r.when == "call" and has(r.nodeid) for r in reports) for reports in (passed, failed))
        terminalreporter.write_line(
            f"layer {layer}: {f'{good} passed, {bad} failed' if good + bad else 'not run here'}"
        )
