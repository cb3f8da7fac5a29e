"""What the module of a backend offers for selection: the devices that it finds, and how good a choice each is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from wasmetal.device.base import DeviceInfo


class Tier(IntEnum):
    """How good a choice a device is; ``auto`` takes the highest."""

    SOFTWARE = 0
    """A GPU interface carried out on the CPU: never better than the CPU device itself, so ``auto`` leaves it alone."""
    CPU = 1
    INTEGRATED = 2
    DISCRETE = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that could be opened."""

    info: DeviceInfo
    tier: Tier
