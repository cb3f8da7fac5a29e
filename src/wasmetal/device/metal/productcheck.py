"""Whether a GPU's products by MPS are to be used: whether they are there, wanted, and as exact as ours."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.counters import Counters
from wasmetal.device.base import Binding, Bytes, MemoryKind
from wasmetal.device.metal.api import mps
from wasmetal.device.metal.buffer import MetalBuffer
from wasmetal.device.metal.commands import MetalCommandList
from wasmetal.device.metal.memory import allocate
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.pipeline import Pipelines
from wasmetal.device.metal.products import Products
from wasmetal.device.metal.queue import Queue
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, NO_BATCH, Kernel
from wasmetal.kernels.reference import KERNELS

ROWS, COLUMNS, DEPTH = 72, 136, 264
"""Of the products: no multiples of 16."""
GAP = 16
"""Bytes before each matrix and after each of its rows."""

_FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
_TOLERANCE = {"f32": 1e-5, "f16": 1e-3}
"""By the type of the outputs, relative to the largest. Operands or sums rounded to fewer bits would be farther off."""
_POISON = 0xFF
"""Bytes that are no number, whatever they are read as: what is not to be read, nor written."""


def find_obstacle(physical: PhysicalDevice, pipelines: Pipelines) -> str | None:
    """Why products are not to be by MPS; None where each that it is asked for agrees with the CPU device's kernel.

    They run on a queue of their own, so that they are in nobody's counters.
    """
    if os.environ.get("WASMETAL_NO_MPS") == "1":
        return "WASMETAL_NO_MPS=1"
    if mps is None:
        return "PyObjC's MetalPerformanceShaders is not installed"
    if not mps.MPSSupportsMTLDevice(physical.handle):
        return "it does not support this GPU"
    trials = list(_trials())
    try:
        queue = Queue(physical, Counters())
        commands = MetalCommandList(queue, pipelines, Products(physical.handle, least=0))
        for trial in trials:
            trial.record(queue, commands)
        commands.finish()
        queue.submit([commands.recording]).wait()
    except DeviceError as error:
        return str(error)
    wrong = [trial.name for trial in trials if not trial.agrees()]
    return f"wrong results for {wrong[0]}" if wrong else None


def _trials() -> Iterator[_Trial]:
    """Every kernel that MPS may stand for, every way that its operands may lie."""
    left, weight = _random("f32", (ROWS, DEPTH)), _random("f32", (COLUMNS, DEPTH), gap=0)
    strides = {"x_stride": _stride("f32", DEPTH), "out_stride": _stride("f32", COLUMNS)}
    fields = {"rows": ROWS, "n": COLUMNS, "k": DEPTH, "batch_offset": NO_BATCH} | strides
    yield _Trial("gemm_f32", [left, weight], _poison("f32", (ROWS, COLUMNS)), fields | {"accumulate": 0})
    yield _Trial("gemm_f32", [left, weight], _random("f32", (ROWS, COLUMNS)), fields | {"accumulate": 1})
    for kinds, a, b in itertools.product(("f32_f32", "f16_f32", "f16_f16"), (False, True), (False, True)):
        kind, result = kinds.split("_")
        left, left_fields = _operand("a", kind, (ROWS, DEPTH), a)
        right, right_fields = _operand("b", kind, (DEPTH, COLUMNS), b)
        fields = {"batch": 1, "m": ROWS, "n": COLUMNS, "k": DEPTH, "out_row": _stride(result, COLUMNS)}
        out = _poison(result, (ROWS, COLUMNS))
        yield _Trial(f"matmul_{kinds}", [left, right], out, fields | left_fields | right_fields)


class _Trial:
    """A product of random matrices."""

    def __init__(self, name: str, operands: list[Bytes], out: Bytes, fields: dict[str, int]) -> None:
        self.name = name
        self._kernel: Kernel = CATALOG[name]
        offsets = {f"{buffer.name}_offset": GAP // buffer.element for buffer in self._kernel.buffers}
        given = dict.fromkeys((field for field, _ in self._kernel.params), 0) | offsets | fields
        self._params = self._kernel.pack(**given)
        self._arrays = [*operands, out, operands[0]][: len(self._kernel.buffers)]  # the last stands in for the step
        self._out = out

    def record(self, queue: Queue, commands: MetalCommandList) -> None:
        """Record the kernel, of which a product is to be made. Raises DeviceError."""
        buffers = [MetalBuffer(allocate(queue, array.size), array.size, MemoryKind.SHARED) for array in self._arrays]
        for buffer, array in zip(buffers, self._arrays, strict=True):
            buffer.view()[:] = array
        self._out = buffers[2].view()
        commands.dispatch(
            self._kernel, [Binding(buffer, 0, buffer.nbytes) for buffer in buffers], self._params, (1, 1, 1)
        )

    def agrees(self) -> bool:
        """Once it has run: whether it gave what the CPU device's kernel gives, and nothing else was written."""
        kind = self.name.rpartition("_")[2]
        KERNELS[self.name](self._kernel.unpack(self._params), *self._arrays)()
        got, want = (_matrix(kind, out, (ROWS, COLUMNS)).astype(np.float64) for out in (self._out, self._arrays[2]))
        close = np.abs(got - want) <= _TOLERANCE[kind] * np.abs(want).max()  # not so for NaN
        around = self._out.copy()
        _matrix(kind, around, (ROWS, COLUMNS))[...] = _matrix(kind, _poison(kind, (ROWS, COLUMNS)), (ROWS, COLUMNS))
        return bool(close.all() and (around == _POISON).all())


def _stride(kind: str, columns: int) -> int:
    """Numbers from row to row."""
    return columns + GAP // _FLOATS[kind].itemsize


def _poison(kind: str, shape: tuple[int, int], gap: int = GAP) -> Bytes:
    """The bytes of a matrix that is not there yet."""
    return np.full(GAP + shape[0] * (shape[1] * _FLOATS[kind].itemsize + gap), _POISON, np.uint8)


def _matrix(kind: str, array: Bytes, shape: tuple[int, int]) -> NDArray[Any]:
    """The matrix in its bytes."""
    return array[GAP:].view(_FLOATS[kind]).reshape(shape[0], -1)[:, : shape[1]]


def _random(kind: str, shape: tuple[int, int], gap: int = GAP) -> Bytes:
    """The bytes of a matrix, with poison before it and after its rows."""
    array = _poison(kind, shape, gap)
    # About 1, so that sums grow: it shows best there if they are rounded on the way.
    _matrix(kind, array, shape)[...] = 1 + np.random.default_rng(shape).standard_normal(shape)
    return array


def _operand(name: str, kind: str, shape: tuple[int, int], transpose: bool) -> tuple[Bytes, dict[str, int]]:
    """A matrix of a shape, or the other way round in memory; and its strides."""
    shape = shape[::-1] if transpose else shape
    strides = (_stride(kind, shape[1]), 1)
    row, column = strides[::-1] if transpose else strides
    return _random(kind, shape), {f"{name}_row": row, f"{name}_column": column}
