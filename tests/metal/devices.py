"""The Metal device that tests run on: the system's own on a Mac, the emulated one elsewhere."""

from __future__ import annotations

import sys

from wasmetal.device import Device, open_device

EMULATED = sys.platform != "darwin"

METAL = "emulated metal" if EMULATED else "metal"
"""What it is called in the names of tests."""


def open_metal() -> Device:
    """Open it. Raises DeviceNotFoundError."""
    if not EMULATED:
        return open_device("metal")
    from metal.standin import installed

    with installed():
        return open_device("metal")
