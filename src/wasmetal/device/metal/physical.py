"""The GPUs that Metal lists, and their properties."""

from __future__ import annotations

import os
from typing import Any

from wasmetal.device.backend import Tier
from wasmetal.device.base import DeviceInfo
from wasmetal.device.metal.api import NSProcessInfo, mtl, objc
from wasmetal.memory.pages import page_size

OFFSET_ALIGNMENT = 16
"""Alignment of a buffer argument's offset: that of ``float4``, the widest type that kernels load."""

SIMD_WIDTH = 32
"""Threads of a simdgroup on every Apple GPU. Checked for each pipeline."""

_PARTS = 20
"""Residency sets that the GPU's working set is divided into: the system evicts whole sets. (As in MLX.)"""
_SMALLEST_PART = 64 << 20

_FAMILIES = (("Metal4", "Metal3"), ("Apple10", "Apple9", "Apple8", "Apple7"))


class PhysicalDevice:
    """One GPU. ``problem`` says why it cannot be used; None if it can."""

    def __init__(self, index: int, handle: Any) -> None:
        self.handle = handle
        self.name = str(handle.name())
        self.system = str(NSProcessInfo.processInfo().operatingSystemVersionString()).removeprefix("Version ")
        # On macOS 14 the virtual GPUs of CI runners give wrapped pages a length of zero, or show stale bytes of files.
        self.problem = None if objc.macos_available(15) else "macOS 15 or later is needed"
        self.virtual = "virtual" in self.name.lower()
        """Whether the GPU is that of a virtual machine ("Apple Paravirtual device")."""
        self.forgets_pipelines = not handle.supportsFamily_(mtl.MTLGPUFamilyApple9)
        """Whether pipelines must be set on an encoder before indirect commands use them (M1 and M2)."""
        unified = bool(handle.hasUnifiedMemory())
        self.tier = Tier.INTEGRATED if unified else Tier.DISCRETE
        longest = int(handle.maxBufferLength()) // page_size() * page_size()
        wraps_files = unified and os.environ.get("WASMETAL_COPY_WEIGHTS") != "1"
        memory_bytes = int(handle.recommendedMaxWorkingSetSize())
        self.part_bytes = min(longest, max(_SMALLEST_PART, memory_bytes // _PARTS))
        self.part_bytes = self.part_bytes // page_size() * page_size()
        """Bytes of a residency set, and of the buffers that longer ranges are split into."""
        self.info = DeviceInfo(
            name=self.name,
            backend="metal",
            index=index,
            driver=", ".join(("Metal", f"macOS {self.system}", *_families(handle))),
            unified=unified,
            memory_bytes=memory_bytes,
            page_alignment=page_size(),
            offset_alignment=OFFSET_ALIGNMENT,
            # A page less, because an unaligned binding is covered by whole pages.
            max_binding_bytes=min(longest - page_size(), 2**32),
            subgroup_size=SIMD_WIDTH,
            operations_per_second=2e11,
            gpu=True,
            fuses=True,
            shuffles=True,
            wraps_files=wraps_files,
            features=("host pages in place", "weights in place" if wraps_files else "weights copied", "timestamps"),
        )


def _families(handle: Any) -> tuple[str, ...]:
    """The newest supported family of each line. (Virtual GPUs report less than they support.)"""
    supported = [
        [name for name in line if handle.supportsFamily_(getattr(mtl, f"MTLGPUFamily{name}"))] for line in _FAMILIES
    ]
    return tuple(line[0] for line in supported if line)


def physical_devices() -> list[PhysicalDevice]:
    """Every GPU that Metal lists, usable or not, in Metal's order."""
    with objc.autorelease_pool():
        return [PhysicalDevice(i, handle) for i, handle in enumerate(mtl.MTLCopyAllDevices() or ())]
