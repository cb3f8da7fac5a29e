"""The CPU backend: buffers are host pages, kernels are C or NumPy functions, and submissions run while awaited."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from wasmetal import processor
from wasmetal.device.backend import Backend, Candidate, Dispatch, Range, Tier
from wasmetal.device.base import DeviceInfo, HostPages, MemoryKind
from wasmetal.device.cpu.library import FEW_ROWS, Library, library, thread_count
from wasmetal.device.cpu.memory import Pages, allocate
from wasmetal.device.cpu.work import CpuRecording, CpuWork, Step
from wasmetal.device.opened import OpenDevice
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel
from wasmetal.kernels.reference import KERNELS
from wasmetal.memory.pages import page_size


class CpuBackend(Backend[Pages, Step, CpuRecording]):
    """The host's processor. Shared and device memory are the same, so no copies are needed."""

    grid_limits = (2**32 - 1,) * 3  # no limit: a NumPy kernel ignores the grid
    in_order = False

    def __init__(self, compiled: Library | None = None) -> None:
        """``compiled``: kernels in C; all others, or all without it, are NumPy's."""
        self.info = _info(compiled)
        self._library = compiled
        self._pending: list[CpuWork] = []

    def allocate(self, nbytes: int, kind: MemoryKind) -> Pages:
        """New zero-filled pages."""
        return allocate(nbytes)

    def wrap(self, pages: HostPages) -> Pages:
        """The pages themselves."""
        return Pages(pages.view())

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[Pages]]) -> Step:
        """The compiled kernel, or else its NumPy function, bound to views of its buffers."""
        if self._library and (number := self._number(self._library, kernel.name)) is not None:
            return number, [bound.allocation.address + bound.offset for bound in ranges], params
        arrays = [bound.allocation.view()[bound.offset : bound.offset + bound.nbytes] for bound in ranges]
        if kernel.name not in KERNELS:
            raise DeviceError(f"kernel {kernel.name} has no NumPy version; use another device")
        return KERNELS[kernel.name](kernel.unpack(params), *arrays)

    def _number(self, library: Library, name: str) -> int | None:
        """The compiled kernel of that name, or, if precision does not matter, one that rounds activations to 8 bits."""
        if self.precision == "fast" and name.startswith(("gemv_", "expert_gemv_")):
            name = name.replace("gemv_", "gemv_rounded_")
        return library.number(name)

    def build(self, dispatches: Sequence[Dispatch[Pages, Step]]) -> CpuRecording:
        """A recording that calls the functions in order."""
        return CpuRecording(dispatches, self._library)

    def start(self, recordings: Sequence[CpuRecording]) -> CpuWork:
        """Queue recordings; they run when they are waited for."""
        if self._pending:
            self._pending = [work for work in self._pending if not work.ended()]
        work = CpuWork(recordings, self._pending)
        self._pending.append(work)
        return work


class CpuDevice(OpenDevice):
    """An open CPU device."""

    def __init__(self) -> None:
        super().__init__(CpuBackend(library()))


def find_devices() -> list[Candidate]:
    """The CPU device: always one."""
    compiled = library()
    return [Candidate(_info(compiled), Tier.CPU, lambda: CpuBackend(compiled))]


def _info(compiled: Library | None) -> DeviceInfo:
    wraps_files = compiled is not None and os.environ.get("WASMETAL_COPY_WEIGHTS") != "1"
    weights = "weights in place" if wraps_files else "weights copied"
    return DeviceInfo(
        name=processor.name(),
        backend="cpu",
        index=0,
        driver=f"{compiled.name} and NumPy {np.__version__}" if compiled else f"NumPy {np.__version__}",
        unified=True,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        page_alignment=page_size(),
        offset_alignment=16,
        max_binding_bytes=2**32,
        subgroup_size=1,
        lazy_memory=True,
        few_rows=FEW_ROWS,
        expands_weights=compiled is None,
        wraps_files=wraps_files,
        features=("host pages in place", weights, f"{thread_count()} threads"),
    )
