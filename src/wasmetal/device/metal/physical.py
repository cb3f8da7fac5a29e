"""The GPUs that Metal shows, and what each is."""

from __future__ import annotations

import os
from typing import Any

from wasmetal.device.backend import Tier
from wasmetal.device.base import DeviceInfo
from wasmetal.device.metal.api import NSProcessInfo, mtl, objc
from wasmetal.memory.pages import page_size

OFFSET_ALIGNMENT = 16
"""Offset of a buffer argument: as the widest type that kernels load, ``float4``."""

SIMD_WIDTH = 32
"""Threads in lockstep on every Apple GPU. Checked against each pipeline."""

_PARTS = 20
"""Parts of the GPU's working set: the system makes each resident, or not, as a whole. (MLX has the same number.)"""
_SMALLEST_PART = 64 << 20

_FAMILIES = (("Metal4", "Metal3"), ("Apple10", "Apple9", "Apple8", "Apple7"))


class PhysicalDevice:
    """One GPU. ``problem`` says in words why it cannot be used, or is None."""

    def __init__(self, index: int, handle: Any) -> None:
        self.handle = handle
        self.name = str(handle.name())
        self.system = str(NSProcessInfo.processInfo().operatingSystemVersionString()).removeprefix("Version ")
        # Before it, the virtual GPUs that continuous integration runs on give wrapped pages no length, or stale bytes.
        self.problem = None if objc.macos_available(15) else "macOS 15 or later is needed"
        self.virtual = "virtual" in self.name.lower()
        """Whether the GPU is a virtual machine's ("Apple Paravirtual device")."""
        self.forgets_pipelines = not handle.supportsFamily_(mtl.MTLGPUFamilyApple9)
        """Whether pipelines must be set on an encoder before indirect commands use them, as on M1 and M2."""
        unified = bool(handle.hasUnifiedMemory())
        self.tier = Tier.INTEGRATED if unified else Tier.DISCRETE
        self.max_buffer_bytes = int(handle.maxBufferLength()) // page_size() * page_size()
        """The longest ``MTLBuffer``, in whole pages."""
        wraps_files = unified and os.environ.get("WASMETAL_COPY_WEIGHTS") != "1"
        memory_bytes = int(handle.recommendedMaxWorkingSetSize())
        self.part_bytes = min(self.max_buffer_bytes, max(_SMALLEST_PART, memory_bytes // _PARTS))
        self.part_bytes = self.part_bytes // page_size() * page_size()
        """The longest ``MTLBuffer`` that long ranges are cut into, and bytes of a residency set."""
        self.info = DeviceInfo(
            name=self.name,
            backend="metal",
            index=index,
            driver=", ".join(("Metal", f"macOS {self.system}", *_families(handle))),
            unified=unified,
            memory_bytes=memory_bytes,
            page_alignment=page_size(),
            offset_alignment=OFFSET_ALIGNMENT,
            # A page less, because whole pages show a binding that begins and ends within pages.
            max_binding_bytes=min(self.max_buffer_bytes - page_size(), 2**32),
            subgroup_size=SIMD_WIDTH,
            wraps_files=wraps_files,
            features=("host pages in place", "weights in place" if wraps_files else "weights copied", "timestamps"),
        )


def _families(handle: Any) -> tuple[str, ...]:
    """The newest family of each line that the GPU says it belongs to. (Virtual GPUs say less than they can do.)"""
    supported = [
        [name for name in line if handle.supportsFamily_(getattr(mtl, f"MTLGPUFamily{name}"))] for line in _FAMILIES
    ]
    return tuple(line[0] for line in supported if line)


def physical_devices() -> list[PhysicalDevice]:
    """Every GPU that Metal shows, usable or not, in its order."""
    with objc.autorelease_pool():
        return [PhysicalDevice(i, handle) for i, handle in enumerate(mtl.MTLCopyAllDevices() or ())]
