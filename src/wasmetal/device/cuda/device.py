"""The CUDA backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wasmetal.device import abandoned
from wasmetal.device.backend import Backend, Range
from wasmetal.device.base import HostPages, MemoryKind
from wasmetal.device.cuda import memory
from wasmetal.device.cuda.api import call, cu, make
from wasmetal.device.cuda.context import Context, Owned
from wasmetal.device.cuda.cublas import Cublas
from wasmetal.device.cuda.launch import address_of
from wasmetal.device.cuda.memory import CudaAllocation
from wasmetal.device.cuda.pipeline import CudaPipelines
from wasmetal.device.cuda.recording import Code, CudaDispatch, CudaRecording
from wasmetal.device.cuda.work import CudaWork, Timers
from wasmetal.device.matrix_units import MatrixUnits
from wasmetal.kernels.catalog import Kernel

_OWN_ORDER: int = cu.CUstream_flags.CU_STREAM_NON_BLOCKING
"""Streams that do not wait for other libraries' work in this process."""


class CudaBackend(Backend[CudaAllocation, Code, CudaRecording]):
    """An open GPU: everything runs on one stream, in order."""

    def __init__(
        self, context: Context, pipelines: CudaPipelines, matrices: MatrixUnits, cublas: Cublas | None = None
    ) -> None:
        """``matrices`` chooses kernels with cooperative matrices; ``cublas`` GEMMs for itself. Raises DeviceError."""
        self.info = context.physical.info
        self.grid_limits = context.physical.grid_limits
        self.context = context
        self.pipelines = pipelines
        self.cublas = cublas
        self._matrices = matrices
        self._stream, self._capturing = (Owned(self.context, "Stream", _OWN_ORDER) for _ in range(2))
        self._timers = Timers(self.context, self._stream)

    def allocate(self, nbytes: int, kind: MemoryKind) -> CudaAllocation:
        """Memory of the GPU, or host pages."""
        if kind is MemoryKind.SHARED or self.info.unified:
            return memory.allocate_shared(self.context, nbytes)
        return memory.allocate_device(self.context, self._stream, nbytes)

    def wrap(self, pages: HostPages) -> CudaAllocation:
        """Register host pages."""
        return memory.wrap(self.context, pages)

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[CudaAllocation]]) -> Code:
        """The library's GEMM; or the kernel, or its variant that suits the dispatch, compiled."""
        suited = None if self.precision == "exact" else self._matrices.suited(kernel, params)
        if suited is None:
            return self.pipelines.get(kernel)
        gemm = self.cublas.find(self, self._stream, kernel, params, ranges) if self.cublas else None
        return gemm or self.pipelines.get(self._matrices.tried(self, kernel, suited))

    def build(self, dispatches: Sequence[CudaDispatch]) -> CudaRecording:
        """Prepare the launches."""
        return CudaRecording(self.context, dispatches)

    def start(self, recordings: Sequence[CudaRecording]) -> CudaWork:
        """Start the launches on the stream."""
        timer = self._timers.take()
        make(self.context.making_current, timer.begin)
        for recording in recordings:
            recording.start(self._stream.handle, self._capturing.handle)
        make(timer.end)
        return CudaWork(self.context, self._timers, timer)

    def copy(self, source: Range[CudaAllocation], target: Range[CudaAllocation]) -> None:
        """Copy on the stream, and wait for the copy."""
        self.begin_copies([(source, target)])()

    def begin_copies(self, pairs: Sequence[tuple[Range[CudaAllocation], Range[CudaAllocation]]]) -> Callable[[], None]:
        """Copy on the stream."""
        timer = self._timers.take()
        make(self.context.making_current, timer.begin)
        for source, target in pairs:
            call("cuMemcpyAsync", address_of(target), address_of(source), source.nbytes, self._stream.handle)
        make(timer.end)
        work = CudaWork(self.context, self._timers, timer)

        def wait() -> None:
            abandoned.finish(work.wait, (work, pairs), self.info.name)
            work.result()

        return wait
