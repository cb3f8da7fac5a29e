"""Whether a GPU is to multiply by simdgroup matrices.

It is tried. What GPUs say of themselves is no guide: virtual ones can do more, and a kernel may be too large for one
that has such matrices.
"""

from __future__ import annotations

import numpy as np

from wasmetal.counters import Counters
from wasmetal.device.base import Binding, Bytes, MemoryKind
from wasmetal.device.metal.buffer import MetalBuffer
from wasmetal.device.metal.commands import MetalCommandList
from wasmetal.device.metal.memory import allocate
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.pipeline import Pipelines
from wasmetal.device.metal.queue import Queue
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, NO_BATCH, Kernel
from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference import KERNELS

ROWS, COLUMNS, DEPTH = 37, 71, 96
"""Of the products: one group's tile and a piece of another's, which end within a matrix, in several steps along k."""

_FLOATS = {"f32": np.float32, "f16": np.float16}
_TOLERANCE = {"f32": 1e-5, "f16": 1e-3}
"""By the type of the outputs, relative to the largest. Operands rounded to fewer bits would be farther off."""


def find_obstacle(physical: PhysicalDevice, pipelines: Pipelines) -> str | None:
    """Why not to use the kernels with simdgroup matrices; None where every one agrees with the CPU device's kernel.

    They run on a queue of their own, so that they are in nobody's counters.
    """
    trials = [_Trial(kernel) for kernel in CATALOG.values() if "simdgroup_matrix" in kernel.features]
    try:
        queue = Queue(physical, Counters())
        commands = MetalCommandList(queue, pipelines)
        for trial in trials:
            trial.record(queue, commands)
        commands.finish()
        queue.submit([commands.recording]).wait()
    except DeviceError as error:
        return str(error)
    wrong = [trial.kernel.name for trial in trials if not trial.agrees()]
    return f"kernel {wrong[0]} gives wrong results" if wrong else None


class _Trial:
    """A product of random matrices by one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        operation, kinds = kernel.name.split("_simdgroup_")
        if operation == "gemm":
            self._result = "f32"
            left, right = _random("f32", ROWS), _random(kinds, COLUMNS)
            self._arrays = [left, right, self._zeros(), left]  # the last stands in for the step
            fields = {"rows": ROWS, "n": COLUMNS, "k": DEPTH, "x_stride": DEPTH, "out_stride": COLUMNS}
            fields |= {"accumulate": 0, "batch_offset": NO_BATCH}
        else:
            kind, self._result = kinds.split("_")
            self._arrays = [_random(kind, ROWS), _random(kind, COLUMNS), self._zeros()]
            fields = {"batch": 1, "m": ROWS, "n": COLUMNS, "k": DEPTH, "out_row": COLUMNS}
            fields |= {"a_row": DEPTH, "a_column": 1, "b_row": 1, "b_column": DEPTH}
        self._params = kernel.pack(**dict.fromkeys((name for name, _ in kernel.params), 0) | fields)
        self._oracle = KERNELS[f"{operation}_{kinds}"]
        self._out = self._zeros()

    def record(self, queue: Queue, commands: MetalCommandList) -> None:
        """Record the kernel. Raises DeviceError where it cannot be built, or is too large for the GPU."""
        buffers = [MetalBuffer(allocate(queue, array.size), array.size, MemoryKind.SHARED) for array in self._arrays]
        for buffer, array in zip(buffers, self._arrays, strict=True):
            buffer.view()[:] = array
        self._out = buffers[2].view()
        bindings = [Binding(buffer, 0, buffer.nbytes) for buffer in buffers]
        commands.dispatch(self.kernel, bindings, self._params, (-(-COLUMNS // 64), 1, 1))

    def agrees(self) -> bool:
        """Once it has run: whether it gave what the CPU device's kernel gives."""
        self._oracle(self.kernel.unpack(self._params), *self._arrays)()
        got, want = (out.view(_FLOATS[self._result]).astype(np.float64) for out in (self._out, self._arrays[2]))
        return bool((np.abs(got - want) <= _TOLERANCE[self._result] * np.abs(want).max()).all())  # not so for NaN

    def _zeros(self) -> Bytes:
        return np.zeros(ROWS * COLUMNS, _FLOATS[self._result]).view(np.uint8)


def _random(kind: str, rows: int) -> Bytes:
    """Rows of DEPTH numbers."""
    random = np.random.default_rng(rows)
    if kind in _FLOATS:
        return random.standard_normal(rows * DEPTH).astype(_FLOATS[kind]).view(np.uint8)
    # Bytes below 0x3c, of which no pair is a float16 beyond 1, whichever bytes of a block its scales are.
    return random.integers(0, 0x3C, rows * DType[kind.upper()].row_bytes(DEPTH), np.uint8)
