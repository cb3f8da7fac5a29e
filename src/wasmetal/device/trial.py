"""Trials: whether a device computes what the NumPy kernels compute, on small random operands.

The features that a driver reports are no guide: a GPU may lack a feature of its family, and a virtual GPU may support
more than it reports. So a backend with several GEMM implementations tries each before using it.
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
"""By type of the result, relative to its largest element. Operands or sums rounded to fewer bits would exceed it."""
_POISON = 0xFF
"""Fills bytes that must be neither read nor written: as f32 or f16 it gives NaN."""
_TILE = 64
"""Rows and columns of the result tile that one group of a GEMM or matmul kernel computes."""

_SAMPLES = 64
"""Places of a file that are compared, evenly spread, including its first and last bytes."""
_WORDS = 256
"""32-bit words compared at each place."""

PATIENCE = 30.0
"""Seconds after which a trial has failed: virtual GPUs are known to hang."""


class Trial:
    """One kernel, with operands to try it on."""

    def __init__(
        self, kernel: Kernel, arrays: Sequence[Bytes], result: str, tiles: int, fields: dict[str, int]
    ) -> None:
        """``arrays``: the bytes of each buffer; the third is the result, of element type ``result``."""
        given = dict.fromkeys((name for name, _ in kernel.params), 0) | fields
        self.kernel = kernel
        self._params = kernel.pack(**given)
        self._arrays = [*arrays, arrays[0]][: len(kernel.buffers)]  # no batch: bind x in its place
        self._dtype = _FLOATS[result]
        self._tolerance = _TOLERANCE[result]
        self._tiles = tiles
        self._buffers: list[Buffer] = []

    def record(self, device: Device, commands: Any) -> None:
        """Record the kernel in ``commands``. Raises DeviceError if the device cannot run it."""
        self._buffers = [device.allocate(array.size, MemoryKind.SHARED) for array in self._arrays]
        for buffer, array in zip(self._buffers, self._arrays, strict=True):
            buffer.view()[:] = array
        bindings = [Binding(buffer, 0, buffer.nbytes) for buffer in self._buffers]
        commands.dispatch(self.kernel, bindings, self._params, grid(self._tiles))

    def agrees(self) -> bool:
        """Whether the kernel, which must have run, wrote what the NumPy kernel writes and nothing else."""
        got = [buffer.view() for buffer in self._buffers]
        want = [array.copy() for array in self._arrays]
        KERNELS[self.kernel.name](self.kernel.unpack(self._params), *want)()
        before, after, found = (arrays[2].view(self._dtype) for arrays in (self._arrays, want, got))
        bits = f"u{self._dtype.itemsize}"
        written = before.view(bits) != after.view(bits)
        results, wanted = found[written].astype(np.float64), after[written].astype(np.float64)
        close = np.abs(results - wanted) <= self._tolerance * np.abs(wanted).max()  # False for NaN
        return bool(close.all() and (found.view(bits) == before.view(bits))[~written].all())


def gemm(kind: str, m: int, n: int, k: int, *, gap: int = 0, accumulate: bool = False) -> Trial:
    """x [m, k] · weightᵀ, weight [n, k] of type ``kind``; ``gap`` bytes before x and the result, and after rows."""
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
    """a [m, k] · b [k, n], each stored by rows or, if transposed, by columns; ``gap`` as in :func:`gemm`."""
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
    """Why a device cannot be used for the kernels of these trials; None if each agrees with the NumPy kernel.

    A device that has not finished after ``patience`` seconds cannot be used.
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
    """How two devices differ after ``runs`` runs of a list of ``length`` dependent dispatches; None if they agree."""
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
    """Compare samples of a wrapped file, as the device sees them, with the file.

    Virtual GPUs are known to read stale bytes there without an error. Raises WrapRefusedError if a sample differs, and
    DeviceTimeoutError if the device does not finish.
    """
    kernel, alignment = CATALOG["embed_f32"], device.info.offset_alignment  # on a table of one row it copies the row
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
        raise WrapRefusedError(f"the device's view differs from the file at byte {wrong[0]}")


def _tiles(m: int, n: int) -> int:
    return -(-m // _TILE) * -(-n // _TILE)


def _offsets(kernel: Kernel, gap: int) -> dict[str, int]:
    """The offsets of the operands in their bindings, in elements: ``gap`` bytes each."""
    return {f"{buffer.name}_offset": gap // buffer.element for buffer in kernel.buffers[:3]}


def _stride(kind: str, columns: int, gap: int) -> int:
    """Elements from row to row."""
    return columns + gap // _FLOATS[kind].itemsize


def _poison(kind: str, rows: int, columns: int, gap: int) -> Bytes:
    """Poison bytes for a result matrix, with ``gap`` bytes before it and after each row."""
    return np.full(gap + rows * _stride(kind, columns, gap) * _FLOATS[kind].itemsize, _POISON, np.uint8)


def _random(kind: str, rows: int, columns: int, gap: int, start: int | None = None) -> Bytes:
    """The bytes of a random matrix: ``gap`` poison bytes after each row, ``start`` (default ``gap``) before it."""
    random = np.random.default_rng((rows, columns))
    start = gap if start is None else start
    head = np.full(start, _POISON, np.uint8)
    if kind not in _FLOATS:
        # Bytes below 0x3c: no pair is a float16 above 1, whichever bytes of a block are its scales.
        return np.concatenate([head, random.integers(0, 0x3C, rows * DType[kind.upper()].row_bytes(columns), np.uint8)])
    body: NDArray[Any] = np.empty((rows, _stride(kind, columns, gap)), _FLOATS[kind])
    body.view(np.uint8)[...] = _POISON
    # Around 1, so that sums grow with k, and rounding of partial sums shows.
    body[:, :columns] = 1 + random.standard_normal((rows, columns))
    return np.concatenate([head, body.view(np.uint8).reshape(-1)])
