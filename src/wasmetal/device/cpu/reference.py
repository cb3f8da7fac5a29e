"""The reference device: the CPU device with all kernels in NumPy, which the other devices are tested against.

It is slow, and opened by its name only.
"""

from __future__ import annotations

from dataclasses import replace

from wasmetal.device.backend import Candidate, Tier
from wasmetal.device.cpu.device import CpuBackend


class ReferenceBackend(CpuBackend):
    """NumPy kernels on host pages."""

    def __init__(self) -> None:
        super().__init__(None)
        self.info = replace(self.info, backend="reference")


def find_devices() -> list[Candidate]:
    """The reference device: always one."""
    return [Candidate(ReferenceBackend().info, Tier.CPU, ReferenceBackend)]
