"""Emulated GPUs with a device on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.metal.devices import EMULATED
from tests.metal.standin import Gpu, installed
from tests.metal.standin.framework import broken
from wasmetal.device import Device, open_device


@pytest.fixture
def gpu() -> Gpu:
    """The emulated GPU of ``emulated``. Tests change it."""
    return Gpu()


@pytest.fixture
def emulated(gpu: Gpu, tried: None, open_on: Callable[[Gpu], Device]) -> Device:
    """A device on ``gpu``, whose kernels were tried before."""
    return open_on(gpu)


@pytest.fixture(scope="session")
def _trials(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder of pipelines with nothing but the trials that the emulated GPU has passed; None on a Mac."""
    if not EMULATED:
        return None
    home = tmp_path_factory.mktemp("tried")
    with pytest.MonkeyPatch.context() as patch, installed():
        patch.setenv("WASMETAL_HOME", str(home))
        open_device("metal").close()
    for archive in home.glob("pipelines/*.archive*"):
        archive.unlink()
    return home / "pipelines"


@pytest.fixture
def tried(_trials: Path | None, tmp_path: Path) -> None:
    """For tests of other things: a device on an emulated GPU of the usual name need not try its kernels again."""
    if _trials:
        shutil.copytree(_trials, tmp_path / "pipelines")


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
    assert not broken, broken
