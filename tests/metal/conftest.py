"""Emulated GPUs with a device on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.metal.devices import EMULATED
from tests.metal.standin import Gpu, installed
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
    """Opens emulated GPUs, with a pipeline archive for each test, and closes them at its end."""
    if not EMULATED:
        pytest.skip("on a Mac Metal is not emulated")
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    with ExitStack() as stack:

        def open_it(gpu: Gpu) -> Device:
            with installed(gpu):
                return stack.enter_context(open_device("metal"))

        yield open_it
