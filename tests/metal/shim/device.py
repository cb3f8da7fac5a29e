"""A device whose kernels are the generated Metal ones, run on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from metal.shim.library import Function, compile_library
from wasmetal.device.base import Binding, Bytes
from wasmetal.device.cpu.device import CpuCommandList, CpuDevice
from wasmetal.kernels.catalog import Access, Kernel


class ShimDevice(CpuDevice):
    """The CPU device's buffers, and Metal's kernels. Each dispatch runs with so many seeds: see ``Function.run``."""

    def __init__(self, seeds: int = 3) -> None:
        super().__init__()
        self.seeds = seeds
        self.info = replace(
            self.info, name="Metal kernels on the CPU", backend="shim", subgroup_size=32, simdgroup_matrices=True
        )
        self.ran: set[str] = set()

    def record(self) -> ShimCommandList:
        return ShimCommandList(self)


class ShimCommandList(CpuCommandList):
    """Runs each dispatch in several orders of its threads, which must all come to the same bytes."""

    def __init__(self, device: ShimDevice) -> None:
        super().__init__(device.counters)
        self._device = device

    def dispatch(
        self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: tuple[int, int, int]
    ) -> None:
        arrays = [binding.buffer.view()[binding.offset :][: binding.nbytes] for binding in bindings]
        self._steps.append(functools.partial(self._launch, kernel, arrays, np.frombuffer(params, np.uint8), groups))

    def _launch(self, kernel: Kernel, arrays: list[Bytes], params: Bytes, groups: tuple[int, int, int]) -> None:
        buffers = {i: (array.ctypes.data, array.size) for i, array in enumerate([params, *arrays])}
        before = [array.copy() for array in arrays]
        function, after = kernel_function(kernel), []
        for seed in range(self._device.seeds):
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
        self._device.ran.add(kernel.name)

    @staticmethod
    def _written(kernel: Kernel, arrays: list[Bytes], array: Bytes) -> bool:
        """True where an array shares bytes with one that the kernel may write: an operation in place."""
        outs = (a for a, access in zip(arrays, kernel.access, strict=True) if access is not Access.READ)
        return any(np.may_share_memory(array, out) for out in outs)


@functools.cache
def kernel_function(kernel: Kernel) -> Function:
    """A kernel of the catalog, compiled from its generated Metal source."""
    return compile_library(kernel.code("metal").decode()).functions[kernel.name]
