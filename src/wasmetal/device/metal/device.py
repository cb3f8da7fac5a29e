"""Metal's part of a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wasmetal.device.backend import Backend, Dispatch, Range
from wasmetal.device.base import HostPages, MemoryKind
from wasmetal.device.metal.memory import MetalAllocation, allocate
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.pipeline import Pipeline, Pipelines, simdgroup_variant
from wasmetal.device.metal.products import Product, Products
from wasmetal.device.metal.queue import CommandQueue, MetalWork
from wasmetal.device.metal.recording import MetalRecording
from wasmetal.kernels.catalog import Kernel

Code = Pipeline | Product


class MetalBackend(Backend[MetalAllocation, Code, MetalRecording]):
    """An open GPU. Every buffer is visible to the host."""

    grid_limits = (2**32 - 1,) * 3  # kernels index groups in 32 bits; Metal has no lower limit

    def __init__(self, physical: PhysicalDevice, pipelines: Pipelines) -> None:
        self.info = physical.info
        self.features: tuple[str, ...] = physical.info.features
        """Features known when the GPU is opened; whether MPS computes GEMMs is only known once it has been tried."""
        self.queue = CommandQueue(physical)
        self.pipelines = pipelines
        self.simdgroups = False
        """Whether GEMMs use the kernels with simdgroup matrices."""
        self.indirect = False
        """Whether command lists are written into indirect command buffers."""
        self.products: Products | None = None
        """Selects the GEMMs that MPS computes; None if MPS is not used."""

    def describe(self) -> None:
        """Update ``info`` with what MPS has turned out to compute."""
        features = (*self.features, *(self.products.features if self.products else ()))
        if features != self.info.features:
            self.info = replace(self.info, features=features)

    def allocate(self, nbytes: int, kind: MemoryKind) -> MetalAllocation:
        """New zero-filled pages. Raises OutOfDeviceMemoryError."""
        return allocate(self.queue, nbytes)

    def wrap(self, pages: HostPages) -> MetalAllocation:
        """The pages in place. Raises WrapRefusedError."""
        return MetalAllocation(self.queue, pages.view())

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[MetalAllocation]]) -> Code:
        """An MPS GEMM, the kernel's variant with simdgroup matrices, or the kernel itself."""
        if self.products is not None:
            places = [bound.allocation.bind(bound.offset, bound.nbytes) for bound in ranges]
            found = self.products.find(kernel, params, places)
            self.describe()
            if found is not None:
                return found
        return self.pipelines.get(simdgroup_variant(kernel) if self.simdgroups else kernel)

    def build(self, dispatches: Sequence[Dispatch[MetalAllocation, Code]]) -> MetalRecording:
        """The list as a recording that can be encoded for every submission."""
        return MetalRecording(self.queue, dispatches, self.indirect)

    def start(self, recordings: Sequence[MetalRecording]) -> MetalWork:
        """Encode the recordings into one command buffer and commit it. Raises DeviceLostError."""
        return self.queue.start(recordings)

    def close(self) -> None:
        """End residency and save the compiled pipelines."""
        self.queue.residency.close()
        self.pipelines.save()
