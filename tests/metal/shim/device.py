"""A device whose kernels are the generated Metal ones, run on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tests.metal.shim.library import Function, compile_library
from wasmetal.device.backend import Dispatch, Range
from wasmetal.device.base import Bytes
from wasmetal.device.cpu.device import CpuBackend
from wasmetal.device.cpu.memory import Pages
from wasmetal.device.cpu.work import CpuRecording, Step
from wasmetal.device.gemm import variant
from wasmetal.device.opened import OpenDevice
from wasmetal.kernels.catalog import Access, Kernel


class ShimDevice(OpenDevice):
    """The CPU device with Metal's kernels."""

    def __init__(self, seeds: int = 3) -> None:
        self.shim = ShimBackend(seeds)
        super().__init__(self.shim)


class ShimBackend(CpuBackend):
    """The CPU's buffers, and Metal's kernels: each runs in several orders of its threads, to the same bytes."""

    def __init__(self, seeds: int) -> None:
        """``seeds``: how many orders; see ``Function.run``."""
        super().__init__(None)
        self.info = replace(
            self.info, name="Metal kernels on the CPU", backend="shim", subgroup_size=32, expands_weights=False
        )
        self.simdgroups = True
        """Whether GEMMs are computed with simdgroup matrices, if there is a kernel for it."""
        self.seeds = seeds
        self.ran: set[str] = set()

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[Pages]]) -> Step:
        if self.simdgroups:
            kernel = variant(kernel, "simdgroup" if self.precision == "exact" else "simdgroup16")
        arrays = [bound.allocation.view()[bound.offset :][: bound.nbytes] for bound in ranges]
        return functools.partial(self._launch, kernel, arrays, np.frombuffer(params, np.uint8))

    def build(self, dispatches: Sequence[Dispatch[Pages, Step]]) -> CpuRecording:
        """With their grids, which NumPy kernels have no use for."""
        return super().build([replace(made, code=functools.partial(made.code, made.groups)) for made in dispatches])

    def _launch(self, kernel: Kernel, arrays: list[Bytes], params: Bytes, groups: tuple[int, int, int]) -> None:
        buffers = {i: (array.ctypes.data, array.size) for i, array in enumerate([params, *arrays])}
        before = [array.copy() for array in arrays]
        function, after = kernel_function(kernel), []
        for seed in range(self.seeds):
            for array, old in zip(arrays, before, strict=True):
                array[:] = old
            function.run(buffers, groups, kernel.threads, seed=seed)
            after.append([array.copy() for array in arrays])
        for i, argument in enumerate(kernel.buffers):
            results = [run[i] for run in after]
            assert all((result == results[0]).all() for result in results), (
                f"{kernel.name}: {argument.name} depends on the order of threads"
            )
            if argument.access is Access.READ and not self._written(kernel, arrays, arrays[i]):
                assert (results[0] == before[i]).all(), f"{kernel.name} writes {argument.name}, which it is to read"
        self.ran.add(kernel.name)

    @staticmethod
    def _written(kernel: Kernel, arrays: list[Bytes], array: Bytes) -> bool:
        """True where an array shares bytes with one that the kernel may write: an operation in place."""
        outs = (a for a, access in zip(arrays, kernel.access, strict=True) if access is not Access.READ)
        return any(np.may_share_memory(array, out) for out in outs)


@functools.cache
def kernel_function(kernel: Kernel) -> Function:
    """A kernel of the catalog, compiled from its generated Metal source."""
    return compile_library(kernel.code("metal").decode()).functions[kernel.name]
