"""The GPUs that the driver lists: their properties, and why one cannot be used."""

from __future__ import annotations

from typing import Any

from wasmetal.device.backend import LEAST_SPEEDS, Tier
from wasmetal.device.base import DeviceInfo
from wasmetal.device.cuda.api import call, cu, start_driver
from wasmetal.memory.pages import page_size

WARP = 32
"""Threads of a warp, on every GPU of NVIDIA's so far."""
_OLDEST = (7, 5)
"""The oldest compute capability that NVRTC 13 compiles for."""
_EARLY = (9, 0)
"""The first compute capability with programmatic dependent launch."""
_BINDING_BYTES = (1 << 32) - 4096
"""The longest binding: some kernels count its bytes in 32 bits."""

_NEEDED = {
    "UNIFIED_ADDRESSING": "it does not share addresses with the host",
    "HOST_REGISTER_SUPPORTED": "it cannot share host pages",
    "CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM": "it sees host pages at other addresses than the host",
    "MEMORY_POOLS_SUPPORTED": "its driver has no memory pools",
}
"""The attributes that a GPU must have, and the consequence of lacking each."""


class PhysicalDevice:
    """A GPU, usable or not.

    ``problem`` is the reason why it cannot be used, or None. ``tier`` and ``info`` are set only if it is None.
    """

    def __init__(self, index: int, driver: str) -> None:
        self.handle = call("cuDeviceGet", index)
        self.name: str = call("cuDeviceGetName", 256, self.handle).split(b"\0")[0].decode()
        self.capability = self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")
        self.problem = self._find_problem()
        if self.problem is None:
            self._describe(index, driver)

    def _attribute(self, name: str) -> int:
        return int(
            call("cuDeviceGetAttribute", getattr(cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), self.handle)
        )

    def _find_problem(self) -> str | None:
        if self.capability < _OLDEST:
            has, least = (".".join(map(str, version)) for version in (self.capability, _OLDEST))
            return f"its compute capability is {has}; {least} or later is needed"
        for name, lack in _NEEDED.items():
            if not self._attribute(name):
                return lack
        if (warp := self._attribute("WARP_SIZE")) != WARP:
            return f"its warps have {warp} threads; the kernels need {WARP}"
        return None

    def _describe(self, index: int, driver: str) -> None:
        integrated = bool(self._attribute("INTEGRATED"))
        self.tier = Tier.INTEGRATED if integrated else Tier.DISCRETE
        x, y, z = (self._attribute(f"MAX_GRID_DIM_{side}") for side in "XYZ")
        self.grid_limits = x, y, z
        major, minor = self.capability
        self.architecture = f"sm_{major}{minor}"
        """NVRTC's name for what kernels are compiled for."""
        self.begins_early = self.capability >= _EARLY
        """Whether a kernel may begin before the one before it has ended."""
        self.info = DeviceInfo(
            name=self.name,
            backend="cuda",
            index=index,
            driver=driver,
            unified=integrated,
            memory_bytes=int(call("cuDeviceTotalMem", self.handle)),
            page_alignment=page_size(),
            offset_alignment=16,
            max_binding_bytes=_BINDING_BYTES,
            subgroup_size=WARP,
            operations_per_second=LEAST_SPEEDS[self.tier],
            gpu=True,
            fuses=True,
            shuffles=True,
            joins=True,
            features=(f"compute capability {major}.{minor}", "host page registration", "graphs"),
        )


def physical_devices() -> list[PhysicalDevice]:
    """Every GPU that the driver lists, in its order. Raises DeviceNotFoundError without a driver or a GPU."""
    start_driver()
    version: Any = call("cuDriverGetVersion")
    driver = f"CUDA {version // 1000}.{version % 1000 // 10}"
    return [PhysicalDevice(index, driver) for index in range(call("cuDeviceGetCount"))]
