"""Tensors for tests: set among poisoned bytes, at offsets that no binding is aligned to, and checked afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from wasmetal.device.base import Device
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import Recorder, Tensor

POISON = 0xA5
ALIGNMENT = 256
"""Of bindings, the coarsest that there is, so that no tensor begins where its binding does."""
GUARD = 272
"""Bytes of poison before and after each tensor: a multiple of 16, as a tensor's offset is, but not of ALIGNMENT."""

SCALES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "MXFP4": (),
}
"""Where the float16 scales and offsets of a block are, in bytes; in other types the block begins with the only one."""

NUMPY = {DType.F32: np.float32, DType.F16: np.float16, DType.I32: np.int32}


class Bench:
    """Puts arrays on a device, runs operations on them, and proves that nothing else was written."""

    def __init__(self, device: Device, max_binding_bytes: int | None = None):
        self.device = device
        self.info = replace(
            device.info,
            offset_alignment=ALIGNMENT,
            max_binding_bytes=max_binding_bytes or device.info.max_binding_bytes,
        )
        self._before: list[tuple[Tensor, np.ndarray]] = []

    def put(self, array: np.ndarray, dtype: DType | None = None, gap: int = 0) -> Tensor:
        """A tensor of these values, with ``gap`` poisoned elements between rows."""
        dtype = dtype or {np.dtype(kind): name for name, kind in NUMPY.items()}[array.dtype]
        inner = int(np.prod(array.shape[1:]))
        tensor = self._tensor(dtype, array.shape, inner + gap if gap else 0)
        self._elements(tensor, self._before[-1][1])[...] = array.reshape(len(array), -1)
        self._write(*self._before[-1])
        return tensor

    def put_weight(self, data: np.ndarray, dtype: DType, columns: int) -> Tensor:
        """A matrix from rows of raw bytes, uint8 [rows, bytes of a row]."""
        tensor = self._tensor(dtype, (len(data), columns), 0)
        self._before[-1][1][GUARD : GUARD + data.size] = data.ravel()
        self._write(*self._before[-1])
        return tensor

    def put_pool(self, values: np.ndarray, dtype: DType) -> tuple[Tensor, np.ndarray]:
        """A pool of a KV cache, [pages, page_size, kv_heads, head_dim], of these values rounded to a type.

        Returns the rounded values too.
        """
        if dtype is not DType.Q8_0:
            rounded = values.astype(NUMPY[dtype])
            return self.put(rounded), rounded
        raw = pool_bytes(values)
        tensor = self._tensor(dtype, values.shape, 0)
        self._before[-1][1][GUARD : GUARD + raw.size] = raw.ravel()
        self._write(*self._before[-1])
        return tensor, pool_values(raw, values.shape)

    def get_pool(self, pool: Tensor) -> np.ndarray:
        """A pool's values now."""
        got = self.get(pool)
        return pool_values(got, pool.shape) if pool.dtype is DType.Q8_0 else got

    def empty(self, *shape: int, dtype: DType = DType.F32, gap: int = 0) -> Tensor:
        """A tensor of poison."""
        tensor = self._tensor(dtype, shape, int(np.prod(shape[1:])) + gap if gap else 0)
        self._write(*self._before[-1])
        return tensor

    def batch(self, rows: int, valid: int | None = None, position: object = 0, sequence: object = 0) -> Tensor:
        """Batch metadata for ``rows`` rows: ``position`` is the first row's, those of the others follow it, or every
        row's; ``sequence`` is every row's, or each one's."""
        table = np.zeros((1 + rows, 2), np.int64)
        table[0, 0] = rows if valid is None else valid
        table[1:, 0] = position + np.arange(rows) if isinstance(position, int) else position
        table[1:, 1] = sequence
        return self.put(table.astype(np.uint32).view(np.int32))

    def sequences(self, tables: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        """The lengths and page tables of sequences."""
        rows = [[length, *table] for length, table in zip(lengths, tables, strict=True)]
        return self.put(np.array(rows, np.int64).astype(np.uint32).view(np.int32))

    def run(self, record: Callable[[Recorder], None]) -> None:
        commands = self.device.record()
        record(Recorder(self.info, commands))
        commands.finish()
        self.device.submit([commands]).wait(60)
        commands.close()

    def get(self, out: Tensor) -> np.ndarray:
        """The tensor's values now; fails if a byte between or around its elements has changed."""
        before, now = self._bytes(out), self._read(out)
        mask = np.ones(len(now), bool)
        self._elements(out, mask, repeat=True)[...] = False
        assert (now[mask] == before[mask]).all(), "written outside of the tensor"
        found = self._elements(out, now)
        return found.copy() if out.dtype.quantized else found.reshape(out.shape).copy()

    def unchanged(self, *tensors: Tensor) -> None:
        """Fails if one of them, or its surroundings, has changed."""
        for tensor in tensors:
            assert (self._read(tensor) == self._bytes(tensor)).all(), "written to an input"

    def only(self, *outs: Tensor) -> None:
        """Fails if anything but the elements of these has changed."""
        for tensor, _ in self._before:
            if tensor in outs:
                self.get(tensor)
            else:
                self.unchanged(tensor)

    def forget(self, scratch: Tensor) -> None:
        """What it holds is up to each kernel; fails if a byte around its elements has changed."""
        self.get(scratch)
        self._before = [each for each in self._before if each[0] is not scratch]
        scratch.buffer.close()

    def close(self) -> None:
        for tensor, _ in self._before:
            tensor.buffer.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tensor(self, dtype: DType, shape: tuple[int, ...], row_stride: int) -> Tensor:
        inner = int(np.prod(shape[1:]))
        row = dtype.row_bytes(row_stride or inner) if len(shape) > 1 else dtype.row_bytes(1)
        size = -(-(2 * GUARD + row * shape[0]) // 4) * 4
        buffer = self.device.allocate(size)
        tensor = Tensor(buffer, GUARD, dtype, shape, row_stride)
        self._before.append((tensor, np.full(size, POISON, np.uint8)))
        return tensor

    def _elements(self, tensor: Tensor, data: np.ndarray, repeat: bool = False) -> np.ndarray:
        """The tensor's elements as a matrix view of its buffer's bytes (or, repeated, of a mask of them)."""
        size = tensor.dtype.block[1]
        inner = int(np.prod(tensor.shape[1:]))
        if tensor.dtype.quantized:
            row = tensor.dtype.row_bytes(inner)
            return np.ndarray((tensor.shape[0], row), data.dtype, data, tensor.offset)
        if repeat:
            shape, strides = (tensor.shape[0], inner * size), (tensor.row_stride * size, 1)
            return np.ndarray(shape, bool, data, tensor.offset, strides)
        shape, strides = (tensor.shape[0], inner), (tensor.row_stride * size, size)
        return np.ndarray(shape, NUMPY[tensor.dtype], data, tensor.offset, strides)

    def _bytes(self, tensor: Tensor) -> np.ndarray:
        return next(before for known, before in self._before if known is tensor)

    def _write(self, tensor: Tensor, data: np.ndarray) -> None:
        self.device.write(tensor.buffer, 0, data)

    def _read(self, tensor: Tensor) -> np.ndarray:
        now = np.empty(tensor.buffer.nbytes, np.uint8)
        self.device.read(tensor.buffer, 0, now)
        return now


def pool_bytes(values: np.ndarray) -> np.ndarray:
    """Q8_0 as a pool of a KV cache has it: for each position the bytes of all blocks, then their scales."""
    slots = values.reshape(-1, values.shape[-2] * values.shape[-1]).astype(np.float32)
    blocks = quantize(slots, GGMLQuantizationType.Q8_0).reshape(len(slots), -1, 34)
    parts = blocks[:, :, 2:].reshape(len(slots), -1), blocks[:, :, :2].reshape(len(slots), -1)
    return np.concatenate(parts, axis=1)


def pool_values(raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values of :func:`pool_bytes`, float32."""
    columns = shape[-2] * shape[-1]
    slots = raw.reshape(-1, columns // 32 * 34)
    scales = np.ascontiguousarray(slots[:, columns:]).view(np.float16).astype(np.float32)
    return (slots[:, :columns].view(np.int8).reshape(len(slots), -1, 32) * scales[..., None]).reshape(shape)


def random_weight(rng: np.random.Generator, dtype: DType, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(raw rows, uint8 [rows, bytes]; the same weights by the gguf package's own reader, float64 [rows, columns])."""
    if dtype in NUMPY:
        values = rng.standard_normal((rows, columns)).astype(NUMPY[dtype])
        return values.view(np.uint8).reshape(rows, -1), values.astype(np.float64)
    if dtype is DType.Q8_16:
        return random_q8_16(rng, rows, columns)
    kind = GGMLQuantizationType(dtype.value)
    if kind is GGMLQuantizationType.BF16:
        raw = quantize(rng.standard_normal((rows, columns)).astype(np.float32), kind)
    else:
        raw = random_blocks(rng, kind, rows, columns)
    return raw, dequantize(raw, kind).astype(np.float64)


def random_blocks(
    rng: np.random.Generator, kind: GGMLQuantizationType, rows: int, columns: int, scale: float = 0.1
) -> np.ndarray:
    """Rows of random blocks, uint8 [rows, bytes], whose scales are at most ``scale``."""
    per_block, nbytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, columns // per_block, nbytes), dtype=np.uint8)
    for at in SCALES.get(kind.name, (0,)):
        halves = rng.uniform(-scale, scale, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    if kind is GGMLQuantizationType.MXFP4:
        blocks[..., 0] = rng.integers(120, 128, blocks.shape[:2])
    return blocks.reshape(rows, -1)


def random_q8_16(rng: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`random_weight`, for the type that is not of ggml."""
    count = rows, columns // 32
    block = np.dtype([("dm", "<f2", 2), ("s", "i1", 2), ("t", "i1", 2), ("q", "i1", (2, 16))])
    blocks = rng.integers(0, 256, (*count, block.itemsize), dtype=np.uint8).view(block)[..., 0]
    blocks["s"] = rng.integers(-32, 32, (*count, 2))  # as large as those of IQ4_XS: d s q is exact in float32
    blocks["dm"] = rng.uniform(-0.1, 0.1, (*count, 2))
    d, m = np.moveaxis(blocks["dm"].astype(np.float64), -1, 0)[..., None, None]
    weights = d * blocks["s"][..., None] * blocks["q"] - m * blocks["t"][..., None]
    # Rounded once, as the sum of a product and an offset is.
    return blocks.view(np.uint8).reshape(rows, -1), weights.reshape(rows, -1).astype(np.float32).astype(np.float64)


def assert_close(got: np.ndarray, want: np.ndarray, tolerance: float, scale: np.ndarray | float | None = None) -> None:
    """|got - want| <= tolerance * scale, the scale being the size of what was added up (|want| unless given)."""
    assert got.shape == want.shape
    bound = tolerance * np.maximum(np.abs(want) if scale is None else scale, 1e-30)
    error = np.abs(got.astype(np.float64) - want)
    if not (error <= bound).all():
        worst = np.unravel_index(np.argmax(error / bound), error.shape)
        pytest.fail(f"at {worst}: {got[worst]} for {want[worst]}, off by {error[worst] / bound[worst]:.3g} tolerances")


def whole_blocks(dtype: DType, columns: int) -> int:
    """So many columns, or as many more as complete a block of the type."""
    return -(-columns // dtype.block[0]) * dtype.block[0]
