"""What Metal does of a device's work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wasmetal.device.backend import Backend, Dispatch, Range
from wasmetal.device.base import HostPages, MemoryKind
from wasmetal.device.metal.memory import MetalAllocation, allocate, wrap_pages
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.pipeline import Pipeline, Pipelines, simdgroup_variant
from wasmetal.device.metal.products import Product, Products
from wasmetal.device.metal.queue import CommandQueue, MetalWork
from wasmetal.device.metal.recording import MetalRecording
from wasmetal.kernels.catalog import Kernel

Code = Pipeline | Product


class MetalBackend(Backend[MetalAllocation, Code, MetalRecording]):
    """One GPU, opened. The host sees every buffer."""

    grid_limits = (2**32 - 1,) * 3  # what kernels can count; Metal has no limit of its own

    def __init__(self, physical: PhysicalDevice, pipelines: Pipelines) -> None:
        self.info = physical.info
        self.features: tuple[str, ...] = physical.info.features
        """What is known of it when it is opened; of products by MPS more is known when they are used."""
        self.queue = CommandQueue(physical)
        self.pipelines = pipelines
        self.simdgroups = False
        """Whether GEMMs are computed by the kernels with simdgroup matrices."""
        self.indirect = False
        """Whether lists are written into indirect command buffers."""
        self.products: Products | None = None
        """What finds the GEMMs that MPS computes."""

    def describe(self) -> None:
        """Bring ``info`` up to date with what has been found out."""
        features = (*self.features, *(self.products.features if self.products else ()))
        if features != self.info.features:
            self.info = replace(self.info, features=features)

    def allocate(self, nbytes: int, kind: MemoryKind) -> MetalAllocation:
        """New zero-filled pages of the system's."""
        return allocate(self.queue, nbytes)

    def wrap(self, pages: HostPages) -> MetalAllocation:
        """The pages themselves."""
        return wrap_pages(self.queue, pages)

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[MetalAllocation]]) -> Code:
        """MPS, the kernel's variant with simdgroup matrices, or the kernel itself."""
        if self.products is not None:
            places = [bound.allocation.bind(bound.offset, bound.nbytes) for bound in ranges]
            found = self.products.find(kernel, params, places)
            self.describe()
            if found is not None:
                return found
        return self.pipelines.get(simdgroup_variant(kernel) if self.simdgroups else kernel)

    def build(self, dispatches: Sequence[Dispatch[MetalAllocation, Code]]) -> MetalRecording:
        """The calls that encode the list."""
        return MetalRecording(self.queue, dispatches, self.indirect)

    def start(self, recordings: Sequence[MetalRecording]) -> MetalWork:
        """Encode and commit a command buffer. Raises DeviceLostError."""
        return self.queue.start(recordings)

    def close(self) -> None:
        """Save what was compiled; give up residency."""
        self.queue.residency.close()
        self.pipelines.save()
