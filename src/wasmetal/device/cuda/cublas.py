"""Large GEMMs computed by cuBLAS, NVIDIA's library, instead of the catalog's kernels, if it is installed.

Its operands are float16: the activations are converted first, and weights of any other format too, to scratch memory.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

from wasmetal.device.backend import AnyBackend, Range
from wasmetal.device.cuda.context import Context, Owned
from wasmetal.device.cuda.launch import Launch, address_of
from wasmetal.device.cuda.memory import CudaAllocation, allocate_device
from wasmetal.device.cuda.pipeline import CudaPipelines
from wasmetal.device.gemm_trials import rounded_gemms
from wasmetal.device.opened import OpenDevice
from wasmetal.device.release import on_release
from wasmetal.device.trial import find_problem
from wasmetal.device.trial_results import TrialResults
from wasmetal.errors import DeviceError, OutOfDeviceMemoryError
from wasmetal.kernels.catalog import CATALOG, FEW_ROWS, THREADS, Kernel, grid

_WORKSPACE = 32 << 20
"""Bytes that cuBLAS may use besides: what NVIDIA recommends for GPUs of compute capability 9.0."""
_LARGEST = 256 << 20
"""Bytes of an operand that is converted, at most: a larger one, such as a vocabulary's, is left to the kernels."""
_FEWEST, _FEWEST_QUICK = 1 << 20, 12 << 20
"""Elements of a weight from which on the library is faster with few rows too, although operands must be converted: the
second for types that the kernels for few rows read quickly, and up to so many rows. On an H200."""
_QUICK, _QUICK_ROWS = ("q8_0", "q4_0"), 32
_PARTS, _CLEARED = 4, 2048
"""Groups for each row of activations, at least, and columns of the result that a group clears (``halve.slang``)."""
_UNSCALED = 16.0
"""By what products are multiplied, since activations are made smaller (``float16_weights.slang``: SCALE)."""

_TRANSPOSED, _AS_IT_IS = 1, 0
_FLOAT32, _FLOAT16 = 0, 2
_COMPUTE_FLOAT32 = 68
_ANY_ALGORITHM = -1
"""Of cuBLAS's enumerations (library_types.h, cublas_api.h)."""

NAME = "large GEMMs by cuBLAS"
"""In the features of the device."""


@cache
def load_cublas() -> Any:
    """The library. Raises DeviceError if it is switched off or not installed."""
    if os.environ.get("WASMETAL_NO_CUBLAS", "0") != "0":
        raise DeviceError("WASMETAL_NO_CUBLAS is set")
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # noqa: PLC0415

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, RuntimeError, OSError) as error:
        raise DeviceError("it is not installed: pip install 'wasmetal[cublas]'") from error


class Cublas:
    """Chooses the GEMMs that cuBLAS computes, and makes them."""

    def __init__(
        self,
        context: Context,
        pipelines: CudaPipelines,
        results: TrialResults | None = None,
        open_with: Callable[[Cublas], AnyBackend] | None = None,
    ) -> None:
        """With ``results``, each weight format is tried at first use, on a backend that ``open_with`` opens."""
        self._context = context
        self._pipelines = pipelines
        self._results = results
        self._open_with = open_with
        self._version: str | None = None
        self._missing: str | None = None
        """Once it has been looked for: the library's version, or why it is not used."""
        self._lock = threading.Lock()
        """Guards what follows: command lists are recorded on any thread."""
        self._handle: ctypes.c_void_p | None = None
        self._workspace: CudaAllocation | None = None
        self._scratch: dict[str, CudaAllocation] = {}
        self._sizes: dict[str, int] = {}

    def find(
        self, backend: AnyBackend, stream: Owned, kernel: Kernel, params: bytes, ranges: Sequence[Range[CudaAllocation]]
    ) -> CublasGemm | None:
        """The GEMM of a dispatch whose operands are aligned, if cuBLAS computes it; None if a kernel runs instead.

        The kernel runs for one row, and for few rows and a small weight; for a weight too large to be converted; if the
        library is not installed or wrong; and without memory for the operands.
        Updates ``backend.info.features`` if this tries the library. Raises DeviceError if the library fails.
        """
        operation, _, kind = kernel.name.partition("_")
        if operation != "gemm":
            return None
        p = kernel.unpack(params)
        converted = p.rows if kind == "f16" else max(p.n, p.rows)
        if (self._results and not pays(kind, p.rows, p.n * p.k)) or 2 * converted * p.k > _LARGEST:
            return None
        if not self._works(backend, kind):
            return None
        try:
            with self._lock:
                return self._make(stream, kind, p, ranges)
        except OutOfDeviceMemoryError:
            return None

    def _make(
        self, stream: Owned, kind: str, p: SimpleNamespace, ranges: Sequence[Range[CudaAllocation]]
    ) -> CublasGemm:
        """``p``: the parameters of the kernel that it takes the place of."""
        self._open(stream)
        x, weight, out, batch = ranges
        halves = self._take(stream, "activations", 2 * p.rows * p.k)
        rows = CATALOG["halve_rows"]
        same = "x_offset", "out_offset", "batch_offset", "batch_row", "rows", "n", "k", "x_stride", "out_stride"
        packed = rows.pack(halves_offset=0, accumulate=p.accumulate, **{name: getattr(p, name) for name in same})
        launches = [self._launch(rows, (x, halves, out, batch), packed, p.rows * max(_PARTS, p.n // _CLEARED))]
        begin = 4 * p.weight_offset
        if kind != "f16":
            convert, read = CATALOG[f"halve_{kind}"], weight
            weight, begin = self._take(stream, "weights", 2 * p.n * p.k), 0
            packed = convert.pack(weight_offset=p.weight_offset, halves_offset=0, rows=p.n, columns=p.k)
            launches.append(self._launch(convert, (read, weight), packed, -(-p.n * p.k // 8 // THREADS)))
        places = address_of(weight) + begin, address_of(halves), address_of(out) + 4 * p.out_offset
        return CublasGemm(self, launches, (p.n, p.rows, p.k), places, p.out_stride)

    def multiply(self, stream: Any, sizes: tuple[int, int, int], places: Sequence[int], stride: int) -> None:
        """Start a GEMM on a stream: it adds to the result. Raises DeviceError."""
        columns, rows, k = sizes
        weight, halves, out = map(ctypes.c_void_p, places)
        handle, workspace = self._handle, self._workspace
        assert workspace is not None
        _call("cublasSetStream_v2", handle, ctypes.c_void_p(int(stream)))
        # On any stream: the order of the stream is that of the work.
        _call("cublasSetWorkspace_v2", handle, ctypes.c_void_p(workspace.device_address), ctypes.c_size_t(_WORKSPACE))
        factor, added = ctypes.c_float(_UNSCALED), ctypes.c_float(1)
        _call(
            "cublasGemmEx",
            *(handle, _TRANSPOSED, _AS_IT_IS, columns, rows, k, ctypes.byref(factor)),
            *(weight, _FLOAT16, k, halves, _FLOAT16, k, ctypes.byref(added)),
            *(out, _FLOAT32, stride, _COMPUTE_FLOAT32, _ANY_ALGORITHM),
        )

    def _works(self, backend: AnyBackend, kind: str) -> bool:
        results, open_with = self._results, self._open_with
        if results is None or open_with is None:
            return True
        if not (self._version or self._missing):
            try:
                self._version = _version()
            except DeviceError as error:
                self._missing = str(error)

        def run() -> str | None:
            other = open_with(Cublas(self._context, self._pipelines))
            other.precision = "standard"
            with OpenDevice(other) as device:
                return find_problem(device, rounded_gemms(kind))

        problem = self._missing or results.problem(f"cuBLAS {self._version} {kind}", run)
        said = f"no {NAME} ({self._missing or f'{kind}: {problem}'})" if problem else NAME
        if said not in backend.info.features:
            backend.info = replace(backend.info, features=(*backend.info.features, said))
        return problem is None

    def _open(self, stream: Owned) -> None:
        if self._handle is None:
            self._context.use()
            handle = ctypes.c_void_p()
            _call("cublasCreate_v2", ctypes.byref(handle))
            on_release(self, self._context.release, load_cublas().cublasDestroy_v2, handle)
            self._workspace = allocate_device(self._context, stream, _WORKSPACE)
            self._handle = handle

    def _take(self, stream: Owned, name: str, nbytes: int) -> Range[CudaAllocation]:
        """Scratch memory, which all GEMMs use one after another."""
        if nbytes > self._sizes.get(name, 0):
            self._scratch[name] = allocate_device(self._context, stream, nbytes)
            self._sizes[name] = nbytes
        return Range(self._scratch[name], 0, nbytes)

    def _launch(self, kernel: Kernel, ranges: tuple[Range[CudaAllocation], ...], params: bytes, groups: int) -> Launch:
        return Launch(self._pipelines.get(kernel), ranges, params, grid(groups))


class CublasGemm:
    """A GEMM by cuBLAS, which can be started any number of times."""

    def __init__(
        self,
        cublas: Cublas,
        launches: Sequence[Launch],
        sizes: tuple[int, int, int],
        places: Sequence[int],
        stride: int,
    ) -> None:
        """``launches``: what converts the operands."""
        self._cublas = cublas
        self._launches = launches
        self._arguments = sizes, places, stride

    def start(self, stream: Any) -> None:
        """Start it on a stream."""
        for launch in self._launches:
            launch.start(stream)
        self._cublas.multiply(stream, *self._arguments)


def pays(kind: str, rows: int, elements: int) -> bool:
    """Whether the library is faster than the kernels, for a weight of so many elements."""
    if rows == 1:
        return False
    if rows > FEW_ROWS:
        return True
    quick = kind in _QUICK and rows <= _QUICK_ROWS
    return elements >= (_FEWEST_QUICK if quick else _FEWEST)


def _version() -> str:
    """The library's. Raises DeviceError if it is not there."""
    numbers = [ctypes.c_int() for _ in range(3)]
    for which, number in enumerate(numbers):
        _call("cublasGetProperty", which, ctypes.byref(number))
    return ".".join(str(number.value) for number in numbers)


def _call(function: str, *args: Any) -> None:
    if status := getattr(load_cublas(), function)(*args):
        raise DeviceError(f"cuBLAS failed ({function}: status {status}); set WASMETAL_NO_CUBLAS=1")
