"""The Metal device that tests run on: the system's own on a Mac, the emulated one elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wasmetal.device import Device, open_device

EMULATED = sys.platform != "darwin"

METAL = "emulated metal" if EMULATED else "metal"
"""The device's name in the names of tests."""

LAYERS = {
    "1, kernels on the CPU shim": lambda test: "test_kernels_on_shim.py::" in test,
    "2, emulated Metal": lambda test: EMULATED and ("emulated metal" in test or "metal/test_metal_" in test),
    "3, this Mac's GPU": lambda test: not EMULATED and ("[metal" in test or "metal/test_metal_" in test),
}
"""The name of each layer of tests, and whether a test belongs to it (docs/metal.md)."""


def open_metal() -> Device:
    """Open it, to compute in float32 as the devices that it is compared with. Raises DeviceNotFoundError."""
    if not EMULATED:
        return open_device("metal", "exact")
    from tests.metal.standin import installed

    with installed():
        return open_device("metal", "exact")


def environment_for(*arguments: object) -> dict[str, str]:
    """Environment variables for a process with these arguments: if they name Metal, it finds the emulated device."""
    if not EMULATED or not any(str(argument).startswith("metal") for argument in arguments):
        return {}
    root = Path(__file__).parents[2]
    path = [str(root), str(root / "tests/metal/standin/modules"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, path))}
