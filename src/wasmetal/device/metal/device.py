"""Metal's part of a device."""

from __future__ import annotations

from collections.abc import Sequence

from wasmetal.device.backend import Backend, Range
from wasmetal.device.base import HostPages, MemoryKind
from wasmetal.device.gemm import variant
from wasmetal.device.libraries.base import GemmLibrary
from wasmetal.device.matrix_units import MatrixUnits
from wasmetal.device.metal.memory import MetalAllocation, allocate
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.pipeline import MetalPipelines, Pipeline
from wasmetal.device.metal.queue import CommandQueue, MetalWork
from wasmetal.device.metal.recording import MetalDispatch, MetalRecording
from wasmetal.device.metal.stream import Pass
from wasmetal.kernels.catalog import Kernel


class MetalBackend(Backend[MetalAllocation, Pipeline | Pass, MetalRecording]):
    """An open GPU. Every buffer is visible to the host."""

    grid_limits = (2**32 - 1,) * 3  # kernels index groups in 32 bits; Metal has no lower limit

    def __init__(
        self,
        physical: PhysicalDevice,
        pipelines: MetalPipelines,
        simdgroups: bool = False,
        halves: MatrixUnits | None = None,
        library: GemmLibrary[MetalAllocation, Pass] | None = None,
        indirect: bool = False,
    ) -> None:
        """``simdgroups``: compute GEMMs with simdgroup matrices; ``halves``: chooses kernels with such of float16.

        ``library``: leave large GEMMs to it; ``indirect``: write command lists into indirect command buffers.
        """
        self.info = physical.info
        self.queue = CommandQueue(physical)
        self.pipelines = pipelines
        self.simdgroups = simdgroups
        self.indirect = indirect
        self._halves = halves
        self._library = library

    def allocate(self, nbytes: int, kind: MemoryKind) -> MetalAllocation:
        """New zero-filled pages. Raises OutOfDeviceMemoryError."""
        return allocate(self.queue.residency, nbytes)

    def wrap(self, pages: HostPages) -> MetalAllocation:
        """The pages in place. Raises WrapRefusedError."""
        return MetalAllocation(self.queue.residency, pages.view())

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[MetalAllocation]]) -> Pipeline | Pass:
        """The library's GEMM, one of the kernel's variants with simdgroup matrices, or the kernel itself."""
        if self._library is not None and (gemm := self._library.find(self, kernel, params, ranges)) is not None:
            return gemm
        kernel = self._halves.choose(self, kernel, params) if self._halves else kernel
        return self.pipelines.get(variant(kernel, "simdgroup") if self.simdgroups else kernel)

    def build(self, dispatches: Sequence[MetalDispatch]) -> MetalRecording:
        """The list as a recording that can be encoded for every submission."""
        return MetalRecording(self.queue.residency, dispatches, self.indirect)

    def start(self, recordings: Sequence[MetalRecording]) -> MetalWork:
        """Encode the recordings into one command buffer and commit it."""
        return self.queue.start(recordings)

    def prepare(self, recordings: Sequence[MetalRecording]) -> None:
        """Encode the next command buffer, if it is likely to be the same."""
        self.queue.prepare(recordings)

    def close(self) -> None:
        """End residency and save the compiled pipelines."""
        self.queue.residency.close()
        self.pipelines.save()
