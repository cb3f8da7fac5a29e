"""Putting the stand-in where ``import Metal`` finds it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import wasmetal.device
from tests.metal.standin.foundation import Foundation, Objc
from tests.metal.standin.framework import Framework, broken
from tests.metal.standin.gpu import Gpu
from tests.metal.standin.shaders import Shaders

PACKAGE = "wasmetal.device.metal"
LIBRARY = "wasmetal.device.libraries.mps"


@contextmanager
def installed(*gpus: Gpu) -> Iterator[Gpu]:
    """Within it ``wasmetal.device.metal`` runs on the stand-in, with these GPUs or one; gives the first.

    Afterwards all is as before, and what broke a rule in passing is raised.
    """
    gpus = gpus or (Gpu(),)
    modules = _modules(gpus)
    saved = _take_out(modules)
    sys.modules.update(modules)
    broken.clear()
    try:
        yield gpus[0]
    finally:
        if library := sys.modules.get(LIBRARY):
            library.load_mps()  # devices outlive the stand-in's place among the modules, and may want this one later
        _take_out(modules)
        sys.modules.update(saved)
        if PACKAGE in saved:
            wasmetal.device.metal = saved[PACKAGE]
    assert not broken, broken


def take_place() -> None:
    """For the rest of this process, with one GPU."""
    sys.modules.update(_modules((Gpu(),)))


def _modules(gpus: tuple[Gpu, ...]) -> dict[str, Any]:
    gpu = gpus[0]
    return {
        "Metal": Framework(list(gpus)),
        "MetalPerformanceShaders": None if gpu.mps == "missing" else Shaders(gpu),  # None: it cannot be imported
        "Foundation": Foundation(gpu),
        "objc": Objc(gpu),
    }


def _take_out(modules: Iterable[str]) -> dict[str, Any]:
    """Remove these modules and the device's, so that the device's next import runs it anew; returns what was there."""
    vars(wasmetal.device).pop("metal", None)
    modules = {*modules, PACKAGE, LIBRARY}
    names = [name for name in sys.modules if name in modules or name.startswith(f"{PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}
