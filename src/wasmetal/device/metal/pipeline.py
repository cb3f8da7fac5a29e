"""Compute pipelines, each compiled from its kernel's Metal source when the kernel is first recorded."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from wasmetal.device.metal.api import mtl, objc, succeeded
from wasmetal.device.metal.archive import Archive
from wasmetal.device.metal.physical import SIMD_WIDTH, PhysicalDevice
from wasmetal.device.pipelines import PipelineTable, compiled_code
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, Kernel


class Pipeline:
    """A kernel compiled for the GPU. The parameter struct is buffer argument 0, the kernel's buffers are 1, 2, …"""

    def __init__(self, physical: PhysicalDevice, kernel: Kernel, archive: Archive, indirect: bool) -> None:
        self.kernel = kernel
        with objc.autorelease_pool():
            descriptor = mtl.MTLComputePipelineDescriptor.new()
            descriptor.setComputeFunction_(_function(physical.handle, kernel))
            if indirect:
                descriptor.setSupportIndirectCommandBuffers_(True)
            self.handle = archive.pipeline(descriptor, f"kernel {kernel.name}")
        self._check(physical)

    def _check(self, physical: PhysicalDevice) -> None:
        threads, most = math.prod(self.kernel.threads), self.handle.maxTotalThreadsPerThreadgroup()
        if threads > most:
            raise DeviceError(
                f"kernel {self.kernel.name} has {threads} threads in a group; {physical.name} allows {most}"
            )
        if (width := self.handle.threadExecutionWidth()) != SIMD_WIDTH:
            raise DeviceError(f"{physical.name} has simdgroups of {width} threads; the kernels need {SIMD_WIDTH}")


def _function(device: Any, kernel: Kernel) -> Any:
    source = compiled_code(kernel, "metal").decode()
    options = mtl.MTLCompileOptions.new()
    # Fast math reorders sums, and assumes that there are no NaNs and infinities.
    options.setMathMode_(mtl.MTLMathModeSafe)
    options.setMathFloatingPointFunctions_(mtl.MTLMathFloatingPointFunctionsPrecise)
    options.setLanguageVersion_(mtl.MTLLanguageVersion3_1)
    compiled = device.newLibraryWithSource_options_error_(source, options, None)
    library = succeeded(compiled, f"kernel {kernel.name} did not compile")
    function = library.newFunctionWithName_(kernel.name)
    if function is None:
        raise DeviceError(f"kernel {kernel.name} is not in its own library: generate the kernels again")
    return function


def simdgroup_variant(kernel: Kernel) -> Kernel:
    """The kernel's variant with simdgroup matrices; the kernel itself if there is none."""
    operation, _, kinds = kernel.name.partition("_")
    return CATALOG.get(f"{operation}_simdgroup_{kinds}", kernel)


class Pipelines:
    """Every pipeline made so far, by kernel, and their archive."""

    def __init__(self, physical: PhysicalDevice, indirect: bool = False) -> None:
        """``indirect``: the pipelines can also be used from indirect command buffers."""
        archive = self.archive = Archive(physical)
        table = PipelineTable(lambda kernel: Pipeline(physical, kernel, archive, indirect))
        self.get = table.get
        self._table = table
        self.save = archive.save

    @property
    def made(self) -> Collection[Kernel]:
        """The kernels that have a pipeline."""
        return self._table.made
