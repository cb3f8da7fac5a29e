"""What Metal does of a device's work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from wasmetal.device.backend import Backend, Dispatch, Range
from wasmetal.device.base import HostPages, MemoryKind
from wasmetal.device.metal.api import mps
from wasmetal.device.metal.memory import MetalAllocation, allocate, wrap_pages
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.pipeline import Pipeline, Pipelines, simdgroup_variant
from wasmetal.device.metal.products import LEAST, Product, Products
from wasmetal.device.metal.queue import CommandQueue, MetalWork
from wasmetal.device.metal.recording import MetalRecording
from wasmetal.device.opened import OpenDevice
from wasmetal.device.trial import find_obstacle, gemm, matmul
from wasmetal.kernels.catalog import Kernel
from wasmetal.kernels.dtypes import WEIGHTS

Code = Pipeline | Product


class MetalBackend(Backend[MetalAllocation, Code, MetalRecording]):
    """One GPU, opened. The host sees every buffer."""

    grid_limits = (2**32 - 1,) * 3  # what kernels can count; Metal has no limit of its own

    def __init__(self, physical: PhysicalDevice, pipelines: Pipelines) -> None:
        self.info = physical.info
        self.queue = CommandQueue(physical)
        self.pipelines = pipelines
        self.simdgroups = False
        """Whether GEMMs are computed by the kernels with simdgroup matrices."""
        self.products: Products | None = None
        """What finds the GEMMs that MPS computes."""

    def allocate(self, nbytes: int, kind: MemoryKind) -> MetalAllocation:
        """New zero-filled pages of the system's."""
        return allocate(self.queue, nbytes)

    def wrap(self, pages: HostPages) -> MetalAllocation:
        """The pages themselves."""
        return wrap_pages(self.queue, pages)

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[MetalAllocation]]) -> Code:
        """MPS, the kernel's variant with simdgroup matrices, or the kernel itself."""
        if self.products is not None:
            places = [bound.allocation.bind(bound.offset) for bound in ranges]
            if (found := self.products.find(kernel, params, places)) is not None:
                return found
        return self.pipelines.get(simdgroup_variant(kernel) if self.simdgroups else kernel)

    def build(self, dispatches: Sequence[Dispatch[MetalAllocation, Code]]) -> MetalRecording:
        """The calls that encode the list."""
        return MetalRecording(self.queue, dispatches)

    def start(self, recordings: Sequence[MetalRecording]) -> MetalWork:
        """Encode and commit a command buffer. Raises DeviceLostError."""
        return self.queue.start(recordings)

    def close(self) -> None:
        """Save what was compiled."""
        self.pipelines.save()


def open_tried(physical: PhysicalDevice) -> MetalBackend:
    """Open a GPU, with those ways to compute a GEMM that agree with the NumPy kernels. Raises DeviceError."""
    backend = MetalBackend(physical, Pipelines(physical))
    no_simdgroups = _try_simdgroups(physical, backend.pipelines)
    no_mps = _try_mps(physical, backend.pipelines)
    backend.simdgroups = no_simdgroups is None
    backend.products = Products(physical.handle, LEAST) if no_mps is None else None
    kept = {"residency set": backend.queue.residency.kept, "pipeline archive": backend.pipelines.archive.kept}
    features = (
        *physical.info.features,
        *(name for name, has in kept.items() if has),
        f"no MPS ({no_mps})" if no_mps else "large products by MPS",
        f"no simdgroup matrices ({no_simdgroups})" if no_simdgroups else "simdgroup matrices",
    )
    backend.info = replace(physical.info, features=features)
    return backend


# Trials run on a device of their own, so that they are in nobody's counters; it shares the compiled kernels.


def _try_simdgroups(physical: PhysicalDevice, pipelines: Pipelines) -> str | None:
    """Why not to use the kernels with simdgroup matrices; None if every one of them is right."""
    backend = MetalBackend(physical, pipelines)
    backend.simdgroups = True
    m, n, k = 37, 71, 96  # one group's tile and a piece of another's, which end within a matrix; several steps along k
    gemms = [gemm(dtype.suffix, m, n, k) for dtype in WEIGHTS]
    floats = ("f32", "f16")
    matmuls = [matmul(kind, result, m, n, k, transpose_b=True) for kind, result in product(floats, floats)]
    return find_obstacle(OpenDevice(backend), gemms + matmuls)


def _try_mps(physical: PhysicalDevice, pipelines: Pipelines) -> str | None:
    """Why GEMMs are not to be computed by MPS; None if each that it may be asked for is right."""
    if os.environ.get("WASMETAL_NO_MPS") == "1":
        return "WASMETAL_NO_MPS=1"
    if mps is None:
        return "PyObjC's MetalPerformanceShaders is not installed"
    if not mps.MPSSupportsMTLDevice(physical.handle):
        return "it does not support this GPU"
    backend = MetalBackend(physical, pipelines)
    backend.products = Products(physical.handle, least=0)
    m, n, k = 72, 136, 264  # no multiples of 16
    gemms = [gemm("f32", m, n, k, gap=16, accumulate=accumulate) for accumulate in (False, True)]
    kinds = (("f32", "f32"), ("f16", "f32"), ("f16", "f16"))
    matmuls = [
        matmul(kind, result, m, n, k, gap=16, transpose_a=a, transpose_b=b)
        for (kind, result), a, b in product(kinds, (False, True), (False, True))
    ]
    return find_obstacle(OpenDevice(backend), gemms + matmuls)
