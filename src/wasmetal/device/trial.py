"""Whether a device computes what the NumPy kernels compute: it is tried, on small random operands.

What a driver says of itself is no guide: a GPU may lack what its family has, and a virtual one may have more than it
says. So a backend that has several ways to compute a GEMM tries each before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import Binding, Buffer, Bytes, Device, MemoryKind
from wasmetal.errors import DeviceError, WrapRefusedError
from wasmetal.kernels.catalog import CATALOG, NO_BATCH, Kernel, grid
from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference import KERNELS

_FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
_TOLERANCE = {"f32": 1e-5, "f16": 1e-3}
"""By the type of the results, relative to the largest. Operands or sums rounded to fewer bits would be farther off."""
_POISON = 0xFF
"""A byte of no number: read as f32 or f16 it gives NaN. Such bytes must be neither used nor written."""
_TILE = 64
"""Rows and columns that a group of the GEMM and matmul kernels computes."""

_SAMPLES = 64
"""Places in a file, evenly spread, the first and last bytes among them."""
_WORDS = 256
"""Words compared at each."""

PATIENCE = 30.0
"""Seconds that a trial is waited for: virtual GPUs are known to hang."""


class Trial:
    """One kernel on operands of a trial's own."""

    def __init__(
        self, kernel: Kernel, arrays: Sequence[Bytes], result: str, tiles: int, fields: dict[str, int]
    ) -> None:
        """``arrays``: the bytes of each buffer; the third is written, and holds numbers of the type ``result``."""
        given = dict.fromkeys((name for name, _ in kernel.params), 0) | fields
        self.kernel = kernel
        self._params = kernel.pack(**given)
        self._arrays = [*arrays, arrays[0]][: len(kernel.buffers)]  # x stands in for no batch
        self._dtype = _FLOATS[result]
        self._tolerance = _TOLERANCE[result]
        self._tiles = tiles
        self._buffers: list[Buffer] = []

    def record(self, device: Device, commands: Any) -> None:
        """Record the kernel. Raises DeviceError if the device cannot run it."""
        self._buffers = [device.allocate(array.size, MemoryKind.SHARED) for array in self._arrays]
        for buffer, array in zip(self._buffers, self._arrays, strict=True):
            buffer.view()[:] = array
        bindings = [Binding(buffer, 0, buffer.nbytes) for buffer in self._buffers]
        commands.dispatch(self.kernel, bindings, self._params, grid(self._tiles))

    def agrees(self) -> bool:
        """Once it has run: whether it wrote what the NumPy kernel writes, and nothing else."""
        got = [buffer.view() for buffer in self._buffers]
        want = [array.copy() for array in self._arrays]
        KERNELS[self.kernel.name](self.kernel.unpack(self._params), *want)()
        before, after, found = (arrays[2].view(self._dtype) for arrays in (self._arrays, want, got))
        bits = f"u{self._dtype.itemsize}"
        written = before.view(bits) != after.view(bits)
        results, wanted = found[written].astype(np.float64), after[written].astype(np.float64)
        close = np.abs(results - wanted) <= self._tolerance * np.abs(wanted).max()  # not so for NaN
        return bool(close.all() and (found.view(bits) == before.view(bits))[~written].all())


def gemm(kind: str, m: int, n: int, k: int, *, gap: int = 0, accumulate: bool = False) -> Trial:
    """x [m, k] weightᵀ, for a weight [n, k] of a type; ``gap`` bytes before and after the rows of x and the result."""
    kernel = CATALOG[f"gemm_{kind}"]
    x, out = _random("f32", m, k, gap), _random("f32", m, n, gap) if accumulate else _poison("f32", m, n, gap)
    weight = _random(kind, n, k, 0, start=gap)
    fields = {"rows": m, "n": n, "k": k, "accumulate": int(accumulate), "batch_offset": NO_BATCH}
    fields |= {"x_stride": _stride("f32", k, gap), "out_stride": _stride("f32", n, gap)}
    return Trial(kernel, [x, weight, out], "f32", _tiles(m, n), fields | _offsets(kernel, gap))


def matmul(
    kind: str,
    result: str,
    m: int,
    n: int,
    k: int,
    *,
    gap: int = 0,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Trial:
    """a [m, k] b [k, n], each laid out by rows or, transposed, by columns."""
    kernel = CATALOG[f"matmul_{kind}_{result}"]
    fields = {"batch": 1, "m": m, "n": n, "k": k, "out_row": _stride(result, n, gap)}
    operands = []
    for name, rows, columns, transposed in (("a", m, k, transpose_a), ("b", k, n, transpose_b)):
        rows, columns = (columns, rows) if transposed else (rows, columns)  # noqa: PLW2901
        operands.append(_random(kind, rows, columns, gap))
        strides = (_stride(kind, columns, gap), 1)
        fields[f"{name}_row"], fields[f"{name}_column"] = strides[::-1] if transposed else strides
    out = _poison(result, m, n, gap)
    return Trial(kernel, [*operands, out], result, _tiles(m, n), fields | _offsets(kernel, gap))


def find_obstacle(device: Device, trials: Sequence[Trial], patience: float = PATIENCE) -> str | None:
    """Why a device is not to be used for these kernels, in words; None if each agrees with the NumPy kernel.

    A device that has not finished after ``patience`` seconds is not to be used either.
    """
    try:
        commands = device.record()
        for trial in trials:
            trial.record(device, commands)
        commands.finish()
        device.submit([commands]).wait(patience)
    except DeviceError as error:
        return str(error)
    wrong = [trial.kernel.name for trial in trials if not trial.agrees()]
    return f"wrong results for {wrong[0]}" if wrong else None


def chain_differs(device: Device, other: Device, length: int = 64, runs: int = 3) -> str | None:
    """Why a list of kernels, each of which needs the one before, is not the same on both devices; None if it is.

    The list is run several times.
    """
    kernel, count = CATALOG["add"], 256
    strides = dict.fromkeys((f"{name}_stride" for name in ("a", "b", "out")), count)
    offsets = dict.fromkeys((f"{name}_offset" for name in ("a", "b", "out")), 0)
    params = kernel.pack(rows=1, columns=count, **strides, **offsets)
    found = []
    try:
        for each in (device, other):
            buffer = each.allocate(3 * 4 * count, MemoryKind.SHARED)
            values = buffer.view().view(np.float32)
            values[:] = np.random.default_rng(0).standard_normal(3 * count)
            thirds = [Binding(buffer, i * 4 * count, 4 * count) for i in range(3)]
            commands = each.record()
            for i in range(length):
                bindings = [thirds[(i + j) % 3] for j in range(3)]
                commands.dispatch(kernel, bindings, params, grid(-(-count // kernel.threads[0])))
            commands.finish()
            for _ in range(runs):
                values *= 1e-6
                each.submit([commands]).wait(PATIENCE)
            found.append(values.tobytes())
    except DeviceError as error:
        return str(error)
    return None if found[0] == found[1] else "wrong results for a chain of kernels"


def check_file(device: Device, buffer: Buffer) -> None:
    """Have the device copy samples of a wrapped file, and compare them.

    Raises WrapRefusedError if one differs, and DeviceTimeoutError if the device does not finish.

    Virtual GPUs are known to have read stale bytes there, in silence.
    """
    kernel, alignment = CATALOG["embed_f32"], device.info.offset_alignment  # of a table of one row
    nbytes = 4 * _WORDS
    last = buffer.nbytes - nbytes
    places = [last * i // (_SAMPLES - 1) // alignment * alignment for i in range(_SAMPLES)]
    copies, ids = device.allocate(_SAMPLES * nbytes, MemoryKind.SHARED), device.allocate(16, MemoryKind.SHARED)
    fields = dict.fromkeys((name for name, _ in kernel.params), 0)
    fields |= {"batch_offset": NO_BATCH, "rows": 1, "columns": _WORDS, "table_rows": 1, "bound_rows": 1}
    params, index = kernel.pack(**fields), Binding(ids, 0, 16)
    commands = device.record()
    for i, place in enumerate(places):
        bindings = [Binding(buffer, place, nbytes), index, Binding(copies, i * nbytes, nbytes), index]
        commands.dispatch(kernel, bindings, params, grid(1))
    commands.finish()
    device.submit([commands]).wait(PATIENCE)
    seen, there = copies.view().reshape(_SAMPLES, nbytes), buffer.view()
    wrong = [place for i, place in enumerate(places) if not np.array_equal(seen[i], there[place : place + nbytes])]
    for gone in (commands, copies, ids):
        gone.close()
    if wrong:
        raise WrapRefusedError(f"the device does not see what the file has at byte {wrong[0]}")


def _tiles(m: int, n: int) -> int:
    return -(-m // _TILE) * -(-n // _TILE)


def _offsets(kernel: Kernel, gap: int) -> dict[str, int]:
    """Where the operands begin, in elements of their bindings: behind ``gap`` bytes."""
    return {f"{buffer.name}_offset": gap // buffer.element for buffer in kernel.buffers[:3]}


def _stride(kind: str, columns: int, gap: int) -> int:
    """Numbers from row to row."""
    return columns + gap // _FLOATS[kind].itemsize


def _poison(kind: str, rows: int, columns: int, gap: int) -> Bytes:
    """The bytes of a matrix that is not there yet, behind ``gap`` bytes."""
    return np.full(gap + rows * _stride(kind, columns, gap) * _FLOATS[kind].itemsize, _POISON, np.uint8)


def _random(kind: str, rows: int, columns: int, gap: int, start: int | None = None) -> Bytes:
    """The bytes of a matrix, with ``gap`` bytes of poison after each row, behind ``start`` (or else ``gap``) bytes."""
    random = np.random.default_rng((rows, columns))
    start = gap if start is None else start
    head = np.full(start, _POISON, np.uint8)
    if kind not in _FLOATS:
        # Bytes below 0x3c: no pair of them is a float16 beyond 1, wherever the scales of a block are.
        return np.concatenate([head, random.integers(0, 0x3C, rows * DType[kind.upper()].row_bytes(columns), np.uint8)])
    body: NDArray[Any] = np.empty((rows, _stride(kind, columns, gap)), _FLOATS[kind])
    body.view(np.uint8)[...] = _POISON
    # About 1, so that sums grow: rounding on the way shows best there.
    body[:, :columns] = 1 + random.standard_normal((rows, columns))
    return np.concatenate([head, body.view(np.uint8).reshape(-1)])
