"""Metal, layer 1: every generated kernel, compiled as C++ and run on the CPU, against the CPU device's kernel.

What this shows of a Metal kernel: its arithmetic, its indexing, its address spaces, its barriers, and that the order of
threads does not matter. What it does not: that Apple's compiler takes it, and that a GPU runs it.

Both devices get the same bytes through the same operations. Tolerances are relative to the largest result: sums are
added up in another order here than in NumPy, and exponentials are another library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.metal.shim.device import ShimDevice
from tests.ops.tensors import NUMPY, Bench, random_weight, whole_blocks
from wasmetal import ops
from wasmetal.device import Device
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.kernels.catalog import CATALOG, GRID_WIDTH, THREADS
from wasmetal.kernels.dtypes import KV, WEIGHTS, DType
from wasmetal.ops import Tensor

FLOATS = (DType.F32, DType.F16)
EXACT, CLOSE = 0.0, 2e-6

# Each of these runs one operation on tensors that it puts on the device, and returns those that it wrote.


def put(bench: Bench, rng: np.random.Generator, *shape: int, gap: int = 0, dtype: DType = DType.F32) -> Tensor:
    return bench.put(rng.standard_normal(shape).astype(NUMPY[dtype]), gap=gap)


def add(bench, rng, shape, gap):
    a, b, out = put(bench, rng, *shape, gap=gap), put(bench, rng, *shape), put(bench, rng, *shape, gap=2 * gap)
    bench.run(lambda rec: ops.add(rec, a, b, out))
    return [out]


def scale(bench, rng, shape, gap):
    x = put(bench, rng, *shape, gap=gap)
    bench.run(lambda rec: ops.scale(rec, x, -0.3, x))
    return [x]


def silu_mul(bench, rng, shape, gap, live):
    gate, up, out = put(bench, rng, *shape, gap=gap), put(bench, rng, *shape), put(bench, rng, *shape, gap=gap)
    batch = None if live is None else bench.batch(shape[0], live)
    bench.run(lambda rec: ops.silu_mul(rec, gate, up, out, batch=batch))
    return [out]


def swiglu_oai(bench, rng, shape, gap, live):
    gate, up, out = put(bench, rng, *shape, gap=gap), put(bench, rng, *shape), put(bench, rng, *shape, gap=gap)
    bench.run(lambda rec: ops.swiglu_oai(rec, gate, up, out, batch=bench.batch(shape[0], live)))
    return [out]


def gelu_mul(bench, rng, shape, gap, live):
    gate, up, out = put(bench, rng, *shape, gap=gap), put(bench, rng, *shape), put(bench, rng, *shape, gap=gap)
    bench.run(lambda rec: ops.gelu_mul(rec, gate, up, out, batch=bench.batch(shape[0], live)))
    return [out]


def gelu(bench, rng, shape, gap, live):
    x, out = put(bench, rng, *shape, gap=gap), put(bench, rng, *shape)
    bench.run(lambda rec: ops.gelu(rec, x, out, batch=bench.batch(shape[0], live)))
    return [out]


def layer_norm(bench, rng, rows, columns):
    x, weight, bias = put(bench, rng, rows, columns, gap=1), put(bench, rng, columns), put(bench, rng, columns)
    bench.run(lambda rec: ops.layer_norm(rec, x, weight, bias, x, 1e-5, batch=bench.batch(rows, max(1, rows - 1))))
    return [x]


def heads_norm(bench, rng, rows, heads, columns):
    x, weight = put(bench, rng, rows, heads, columns, gap=4), put(bench, rng, columns)
    bench.run(lambda rec: ops.rms_norm(rec, x, weight, x, 1e-5, batch=bench.batch(rows, max(1, rows - 1))))
    return [x]


def rms_norm(bench, rng, rows, columns):
    x, weight, out = put(bench, rng, rows, columns, gap=1), put(bench, rng, columns), put(bench, rng, rows, columns)
    batch = bench.batch(rows, max(1, rows - 1))
    bench.run(lambda rec: ops.rms_norm(rec, x, weight, out, 1e-5, batch=batch))
    bench.run(lambda rec: ops.rms_norm(rec, x, weight, x, 1e-5))
    return [x, out]


def softmax(bench, rng, rows, columns):
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    values[np.arange(rows), rng.integers(0, columns, rows)] = 200  # Its exponential overflows.
    values[0] = -np.inf
    x, out = bench.put(values, gap=3), bench.empty(rows, columns)
    bench.run(lambda rec: ops.softmax(rec, x, out))
    return [out]


def argmax(bench, rng, rows, columns):
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    for _ in range(2):  # The lowest index of equals is asked for.
        values[np.arange(rows), rng.integers(0, columns, rows)] = 9
    values[0, 0] = np.nan
    x, out = bench.put(values, gap=1), bench.empty(rows, dtype=DType.I32)
    bench.run(lambda rec: ops.argmax(rec, x, out))
    return [out]


def top_logits(bench, rng, rows, columns, k, parts):
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    values[:, ::7] = 1  # The lowest of equals comes first.
    values[0, 0] = np.nan
    x, scratch = bench.put(values, gap=1), bench.empty(rows, k + 1, parts, 2, dtype=DType.I32)
    ids, values, totals = bench.empty(rows, k, dtype=DType.I32), bench.empty(rows, k), bench.empty(rows, 2)
    bench.run(lambda rec: ops.top_logits(rec, x, ids, values, totals, 0.7, scratch=scratch))
    return [ids, values, totals, scratch]


def next_token(bench, rng, rows, k, temperature):
    ids = bench.put(rng.permutation(1000)[: rows * k].reshape(rows, k).astype(np.int32))
    values = bench.put(-np.sort(-rng.standard_normal((rows, k)), axis=1).astype(np.float32))
    floats = np.array([temperature, 0.9, 0.01], np.float32).view(np.int32)
    draws = rng.random((rows, 4)).astype(np.float32).view(np.int32)
    settings = np.concatenate([np.tile(np.r_[floats, [40, 5, 3]], (rows, 1)), draws], axis=1).astype(np.int32)
    tokens, chosen = bench.put(np.zeros(rows, np.int32)), bench.put(np.zeros((rows, 4), np.int32))
    batch = bench.batch(rows, rows, 5, np.arange(rows))  # rows from the fourth on are past their last token
    sequences = bench.sequences([[1, 2]] * rows, list(range(6, 6 + rows)))
    given = bench.put(settings)
    bench.run(lambda rec: ops.next_token(rec, ids, values, given, tokens, batch, sequences, chosen))
    return [tokens, batch, sequences, chosen]


def rope(bench, rng, interleaved, position):
    x, table, batch = put(bench, rng, 4, 3, 10, gap=2), put(bench, rng, 9, 4, 2), bench.batch(4, 3, position)
    bench.run(lambda rec: ops.rope(rec, x, table, batch, interleaved=interleaved))
    return [x]


def mixed(bench, rows, position):
    """Two sequences: one takes the last row, the other all rows before it."""
    number = np.arange(rows) == rows - 1
    positions = np.where(number & (rows > 1), 2, position + np.arange(rows))
    sequences = bench.sequences([[3, 0, 2], [1, 1, 1]], [position + rows, 3])
    return sequences, bench.batch(rows, None, positions, number & (rows > 1))


def pool(bench, rng, pages, page_size, kv_heads, head_dim, dtype):
    return bench.put_pool(rng.standard_normal((pages, page_size, kv_heads, head_dim)), dtype)[0]


def rope_append(bench, rng, dtype, rows, head_dim, position, interleaved):
    q, k = put(bench, rng, rows, 3, head_dim, gap=2), put(bench, rng, rows, 2, head_dim)
    v, table = put(bench, rng, rows, 2, head_dim, gap=3), put(bench, rng, 9, head_dim // 2 - 1, 2)
    k_pages, v_pages = (pool(bench, rng, 4, 5, 2, head_dim, dtype) for _ in range(2))
    sequences, batch = mixed(bench, rows, position)
    paged = k_pages, v_pages, batch, sequences
    bench.run(lambda rec: ops.rope_append(rec, q, k, v, table, *paged, interleaved=interleaved))
    return [q, k_pages, v_pages]


def split_attention(bench, rng, dtype, heads, kv_heads, head_dim, position, parts, window=None, sinks=False):
    q, out = put(bench, rng, 2, heads, head_dim, gap=1), put(bench, rng, 2, heads * head_dim, gap=2)
    k_pages, v_pages = (pool(bench, rng, 4, 60, kv_heads, head_dim, dtype) for _ in range(2))
    sequences, batch = mixed(bench, 2, position)
    scratch, scale = bench.empty(2, heads, parts, head_dim + 4), head_dim**-0.5
    how = {"window": window, "sinks": put(bench, rng, heads) if sinks else None}
    paged = k_pages, v_pages, batch, sequences
    bench.run(lambda rec: ops.split_attention(rec, q, *paged, out, scale, scratch=scratch, **how))
    return [out, scratch]


def rope_split_attention(bench, rng, dtype, heads, head_dim, position, parts, interleaved):
    q, k, v = put(bench, rng, 1, heads, head_dim), put(bench, rng, 1, 2, head_dim), put(bench, rng, 1, 2, head_dim)
    table, out = put(bench, rng, 99, head_dim // 2 - 1, 2), put(bench, rng, 1, heads * head_dim)
    k_pages, v_pages = (pool(bench, rng, 4, 60, 2, head_dim, dtype) for _ in range(2))
    sequences, batch = bench.sequences([[3, 0, 2]], [position + 1]), bench.batch(1, position=position)
    inputs, scratch = (q, k, v, table, k_pages, v_pages, batch, sequences), bench.empty(1, heads, parts, head_dim + 4)
    how = {"interleaved": interleaved, "scratch": scratch}
    bench.run(lambda rec: ops.rope_split_attention(rec, *inputs, out, head_dim**-0.5, **how))
    bench.forget(scratch)  # how a context is shared out is up to each kernel
    return [out, k_pages, v_pages]


def prefill_attention(bench, rng, dtype, rows, heads, kv_heads, head_dim, position, window=None, sinks=False):
    q, out = put(bench, rng, rows, heads, head_dim, gap=1), put(bench, rng, rows, heads * head_dim, gap=2)
    k_pages, v_pages = (pool(bench, rng, 4, 25, kv_heads, head_dim, dtype) for _ in range(2))
    sequences, batch = mixed(bench, rows, position)
    how = {"window": window, "sinks": put(bench, rng, heads) if sinks else None}
    paged = k_pages, v_pages, batch, sequences
    bench.run(lambda rec: ops.prefill_attention(rec, q, *paged, out, head_dim**-0.5, **how))
    return [out]


def copy(bench, rng, rows, columns):
    x, out = put(bench, rng, rows, columns), bench.empty(rows, columns)
    bench.run(lambda rec: ops.copy(rec, x, out))
    return [out]


def kv_append(bench, rng, dtype, rows, kv_heads, head_dim, position):
    k, v = put(bench, rng, rows, kv_heads, head_dim, gap=3), put(bench, rng, rows, kv_heads, head_dim)
    k_pages, v_pages = (pool(bench, rng, 4, 5, kv_heads, head_dim, dtype) for _ in range(2))
    sequences, batch = mixed(bench, rows, position)
    bench.run(lambda rec: ops.kv_append(rec, k, v, k_pages, v_pages, batch, sequences))
    return [k_pages, v_pages]


def attention(bench, rng, dtype, rows, heads, kv_heads, head_dim, page_size, position, window=None, sinks=False):
    q, out = put(bench, rng, rows, heads, head_dim, gap=1), put(bench, rng, rows, heads * head_dim, gap=2)
    k_pages, v_pages = (pool(bench, rng, 4, page_size, kv_heads, head_dim, dtype) for _ in range(2))
    sequences, batch = mixed(bench, rows, position)
    scale = head_dim**-0.5
    how = {"window": window, "sinks": put(bench, rng, heads) if sinks else None}
    bench.run(lambda rec: ops.attention(rec, q, k_pages, v_pages, batch, sequences, out, scale, **how))
    return [out]


def linear(bench, rng, dtype, rows, n, k, accumulate):
    k = whole_blocks(dtype, k)
    weight = bench.put_weight(random_weight(rng, dtype, n, k)[0], dtype, k)
    x, out = put(bench, rng, rows, k, gap=rows - 1), put(bench, rng, rows, n, gap=rows - 1)
    batch = bench.batch(rows, rows - 1) if rows > 1 else None
    bench.run(lambda rec: ops.linear(rec, x, weight, out, accumulate=accumulate, batch=batch))
    return [out]


def rounded_linear(
    bench: Bench, rng: np.random.Generator, dtype: DType, rows: int, n: int, k: int, accumulate: int
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """A GEMM; its result, in float64, from operands rounded to float16; and the same from the operands as they are."""
    k = whole_blocks(dtype, k)
    raw, weights = random_weight(rng, dtype, n, k)
    weight = bench.put_weight(raw, dtype, k)
    x, before = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, k), (rows, n)))
    out = bench.put(before, gap=rows - 1)
    tensors, batch = (bench.put(x, gap=rows - 1), weight, out), bench.batch(rows, rows - 1)
    bench.run(lambda rec: ops.linear(rec, *tensors, accumulate=accumulate, batch=batch))
    halves = (x / 16).astype(np.float16).astype(np.float64) * 16, weights.astype(np.float16).astype(np.float64)
    wanted = []
    for a, b in (halves, (x.astype(np.float64), weights)):
        want = a @ b.T + (before if accumulate else 0)
        want[rows - 1 :] = before[rows - 1 :]  # which are not valid
        wanted.append(want)
    return out, wanted[0], wanted[1]


def check_rounded(device: Device, tolerance: float, dtype: DType, *sizes: int) -> None:
    """Activations and weights are rounded to float16, and nothing else is: sums are float32."""
    with Bench(device) as bench:
        out, want, unrounded = rounded_linear(bench, np.random.default_rng(7), dtype, *sizes)
        bench.only(out)
        scale = np.abs(want).max()
        error = np.abs(bench.get(out) - want).max()
        assert error <= tolerance * scale, f"off by {error}; {tolerance * scale} is allowed"
        assert np.abs(unrounded - want).max() > 10 * CLOSE * scale  # the test could tell


def norm_linear(bench, rng, dtype, n, k, bias):
    k = whole_blocks(dtype, k)
    weight = bench.put_weight(random_weight(rng, dtype, n, k)[0], dtype, k)
    x, norm, out = put(bench, rng, 1, k), put(bench, rng, k), bench.empty(1, n)
    added = put(bench, rng, n) if bias else None
    bench.run(lambda rec: ops.norm_linear(rec, x, norm, weight, out, 1e-5, bias=added))
    return [out]


def norm_gated(bench, rng, dtype, n, k, activation):
    k = whole_blocks(dtype, k)
    gate, up = (bench.put_weight(random_weight(rng, dtype, n, k)[0], dtype, k) for _ in range(2))
    x, norm, out = put(bench, rng, 1, k), put(bench, rng, k), bench.empty(1, n)
    bench.run(lambda rec: ops.norm_gated(rec, x, norm, gate, up, out, 1e-5, activation=activation))
    return [out]


def embed(bench, rng, dtype):
    k = whole_blocks(dtype, 96)
    table = bench.put_weight(random_weight(rng, dtype, 7, k)[0], dtype, k)
    ids, out, batch = bench.put(np.array([3, 0, -1, 6, 99], np.int32)), put(bench, rng, 5, k, gap=1), bench.batch(5, 4)
    bench.run(lambda rec: ops.embed(rec, table, ids, out, batch=batch))
    return [out]


def top_k(bench, rng, rows, columns, slots, normalized):
    logits, ids = put(bench, rng, rows, columns, gap=3), bench.empty(rows, slots, dtype=DType.I32)
    weights, batch = bench.empty(rows, slots), bench.batch(rows, max(1, rows - 1))
    bench.run(lambda rec: ops.top_k(rec, logits, ids, weights, normalized=normalized, batch=batch))
    return [ids, weights]


def expert_linear(bench, rng, dtype, rows, slots, n, k, accumulate):
    k = whole_blocks(dtype, k)
    weight = bench.put_weight(random_weight(rng, dtype, 3 * n, k)[0], dtype, k).reshape(3, n, k)
    x, out = put(bench, rng, rows, slots, k, gap=rows - 1), put(bench, rng, rows, slots, n, gap=rows - 1)
    ids = bench.put(rng.integers(-1, 4, (rows, slots)).astype(np.int32))
    batch = bench.batch(rows, rows - 1) if rows > 1 else None
    bench.run(lambda rec: ops.expert_linear(rec, x, weight, ids, out, accumulate=accumulate, batch=batch))
    return [out]


def weighted_sum(bench, rng, rows, slots, columns, accumulate):
    x, weights = put(bench, rng, rows, slots, columns, gap=2), put(bench, rng, rows, slots)
    out, batch = put(bench, rng, rows, columns, gap=1), bench.batch(rows, max(1, rows - 1))
    bench.run(lambda rec: ops.weighted_sum(rec, x, weights, out, accumulate=accumulate, batch=batch))
    return [out]


def matmul(bench, rng, dtype, result, transpose_a, transpose_b, m, n, k):
    a = put(bench, rng, 2, *((k, m) if transpose_a else (m, k)), dtype=dtype)
    b = put(bench, rng, *((n, k) if transpose_b else (k, n)), gap=3, dtype=dtype)
    out = bench.empty(2, m, n, dtype=result)
    bench.run(lambda rec: ops.matmul(rec, a, b, out, transpose_a=transpose_a, transpose_b=transpose_b))
    return [out]


@dataclass(frozen=True)
class Case:
    """One of the above with its arguments, and the tolerance."""

    name: str
    run: Callable[[Bench, np.random.Generator], list[Tensor]]
    tolerance: float
    simdgroups: bool = True
    """Whether GEMMs are computed with simdgroup matrices."""
    shuffles: bool = False
    """Whether the threads of attention read each other's values."""


def case(tolerance: float, run: Callable[..., list[Tensor]], *args: object) -> Case:
    words = (arg.name if isinstance(arg, DType) else str(arg) for arg in args)
    return Case(f"{run.__name__} {' '.join(words)}", lambda bench, rng: run(bench, rng, *args), tolerance)


def products(tolerance: float, run: Callable[..., list[Tensor]], *args: object) -> Iterator[Case]:
    """The case with simdgroup matrices, and by the kernels of GPUs without them."""
    simdgroup = case(tolerance, run, *args)
    yield replace(simdgroup, name=f"{simdgroup.name} simdgroup")
    yield replace(simdgroup, simdgroups=False)


def shuffled(tolerance: float, run: Callable[..., list[Tensor]], *args: object) -> Case:
    """The case with threads that read each other's values."""
    plain = case(tolerance, run, *args)
    return replace(plain, name=f"{plain.name} shuffled", shuffles=True)


def attentions(tolerance: float, run: Callable[..., list[Tensor]], *args: object) -> Iterator[Case]:
    """The case with and without that."""
    yield case(tolerance, run, *args)
    yield shuffled(tolerance, run, *args)


def cases() -> Iterator[Case]:
    for shape, gap in (((1,), 0), ((131,), 0), ((5, 67), 3), ((3, 5, 19), 0)):
        yield case(EXACT, add, shape, gap)
        yield case(EXACT, scale, shape, gap)
    for shape, gap, live in (((1, 1), 0, 1), ((5, 67), 3, 4), ((2, 131), 0, None)):
        yield case(CLOSE, silu_mul, shape, gap, live)
    yield from (case(CLOSE, run, (5, 67), 3, 4) for run in (gelu_mul, swiglu_oai))
    for rows, columns, slots, normalized in ((1, 5, 5, True), (4, 131, 3, False)):
        yield case(CLOSE, top_k, rows, columns, slots, normalized)
    for rows, slots, columns, accumulate in ((1, 2, 131, True), (5, 3, 7, False)):
        yield case(CLOSE, weighted_sum, rows, slots, columns, accumulate)
    yield case(CLOSE, gelu, (5, 67), 3, 4)
    yield case(CLOSE, layer_norm, 9, 127)
    for rows, heads, columns in ((1, 3, 64), (5, 2, 131)):
        yield case(CLOSE, heads_norm, rows, heads, columns)
    for rows, columns in ((1, 1), (9, 127), (17, 300)):
        yield case(CLOSE, rms_norm, rows, columns)
        yield case(CLOSE, softmax, rows, columns)
        yield case(EXACT, argmax, rows, columns)
    for rows, columns, k, parts in ((1, 9, 8, 1), (2, 700, 40, 3), (1, 2500, 64, 2)):
        yield case(CLOSE, top_logits, rows, columns, k, parts)
    yield from (case(EXACT, next_token, *how) for how in ((1, 1, 0.0), (5, 64, 0.8)))
    for interleaved, position in product((True, False), (2, 7)):  # 7: past the table's end, to which it is clamped.
        yield case(CLOSE, rope, interleaved, position)
    for dtype in FLOATS:
        for rows, position in ((1, 0), (3, 9), (2, 14), (1, -1)):  # The last two: past the last page.
            yield case(EXACT, kv_append, dtype, rows, 2, 12, position)
        yield case(CLOSE, attention, dtype, 1, 3, 1, 12, 5, 0)
        yield case(CLOSE, attention, dtype, 3, 4, 2, 68, 5, 9)
        yield case(CLOSE, attention, dtype, 2, 1, 1, 256, 5, 14)
        yield case(CLOSE, attention, dtype, 3, 4, 2, 68, 5, 9, 4)
        yield case(CLOSE, attention, dtype, 3, 4, 2, 20, 5, 9, None, True)
        yield case(CLOSE, attention, dtype, 1, 2, 1, 20, 51, 140)  # More positions than a group has threads.
    for dtype, interleaved in product(KV, (True, False)):
        yield case(CLOSE, rope_append, dtype, 3, 32, 6, interleaved)
    yield case(CLOSE, rope_append, DType.F16, 1, 12, 14, True)
    for dtype in KV:
        yield from attentions(CLOSE, split_attention, dtype, 4, 2, 96, 140, 2)
        yield from attentions(CLOSE, split_attention, dtype, 10, 2, 32, 9, 3, 4, True)
        yield shuffled(CLOSE, split_attention, dtype, 2, 1, 256, 170, 1)
        yield from attentions(CLOSE, rope_split_attention, dtype, 10, 96, 140, 2, dtype is DType.F32)
        for head_dim in (64, 256):
            yield shuffled(CLOSE, rope_split_attention, dtype, 6, head_dim, 130, 2, False)
        yield case(CLOSE, prefill_attention, dtype, 7, 6, 2, 96, 40)
        yield case(CLOSE, prefill_attention, dtype, 3, 20, 1, 64, 9, 4, True)
    yield case(CLOSE, split_attention, DType.F16, 2, 1, 256, 170, 1)
    yield case(CLOSE, prefill_attention, DType.F16, 2, 1, 1, 256, 14)
    for rows, position in ((1, 0), (3, 9), (1, -1)):
        yield case(EXACT, kv_append, DType.Q8_0, rows, 2, 96, position)
    for window in (None, 4):
        yield case(CLOSE, attention, DType.Q8_0, 3, 4, 2, 96, 5, 9, window)
    yield case(CLOSE, attention, DType.Q8_0, 1, 2, 1, 128, 51, 140)
    yield case(EXACT, copy, 3, 172)
    # Threads compute 4 columns (of 8 rows) each: widths with every remainder.
    for dtype in WEIGHTS:
        yield case(CLOSE, embed, dtype)
        for n, k, accumulate in ((13, 96, 0), (14, 32, 1), (15, 288, 0), (20, 64, 1)):
            yield case(CLOSE, linear, dtype, 1, n, k, accumulate)
        for rows, n, k, accumulate in ((67, 5, 32, 1), (72, 66, 160, 0), (3, 7, 96, 1), (66, 68, 64, 0)):
            yield from products(CLOSE, linear, dtype, rows, n, k, accumulate)
        for n, k in ((13, 96), (8, 288)):
            yield case(CLOSE, norm_linear, dtype, n, k, n == 8)
            yield case(CLOSE, norm_gated, dtype, n, k, "gelu" if n == 8 else "silu")
        yield case(CLOSE, expert_linear, dtype, 1, 2, 13, 96, 0)
        yield case(CLOSE, expert_linear, dtype, 4, 2, 66, 64, 1)
    yield case(CLOSE, expert_linear, DType.Q4_1, 120, 2, 5, 32, 0)  # more rows of an expert than a tile has
    for dtype in (*FLOATS, DType.BF16):
        yield case(CLOSE, expert_linear, dtype, 2, 2, 5, 37, 0)
        yield from products(CLOSE, linear, dtype, 1, 7, 13, 0)
        yield from products(CLOSE, linear, dtype, 5, 9, 37, 0)
    for dtype in FLOATS:
        for result in FLOATS:
            tolerance = CLOSE if result is DType.F32 else 1e-3
            for a, b, sizes in ((0, 0, (67, 5, 37)), (0, 1, (73, 66, 70)), (1, 0, (14, 71, 5)), (1, 1, (72, 4, 101))):
                yield from products(tolerance, matmul, dtype, result, a, b, *sizes)


CASES = list(cases())
ROUNDED = [
    (dtype, *sizes)
    for dtype in WEIGHTS
    if dtype is not DType.F32
    for sizes in ((67, 5, 32, 1), (72, 66, 160, 0), (3, 7, 96, 1), (130, 68, 64, 0))
]
"""GEMMs of operands rounded to float16, as the last arguments of :func:`check_rounded`."""
ROUNDED += [(dtype, 5, 9, 37, 0) for dtype in (DType.F16, DType.BF16)]


@pytest.fixture(scope="module")
def shim() -> Iterator[ShimDevice]:
    with ShimDevice() as device:
        yield device


def results(device: Device, case: Case) -> list[np.ndarray]:
    with Bench(device) as bench:
        outs = case.run(bench, np.random.default_rng(7))
        bench.only(*outs)
        return [bench.get(out) for out in outs]


@functools.cache
def check(shim: ShimDevice, case: Case) -> None:
    with CpuDevice() as cpu:
        wanted = results(cpu, case)
    shim.shim.simdgroups = case.simdgroups
    shim.shim.info = replace(shim.shim.info, shuffles=case.shuffles)
    for got, want in zip(results(shim, case), wanted, strict=True):
        error = np.abs(got.astype(np.float64) - want)
        bound = case.tolerance * np.abs(want.astype(np.float64)).max()
        assert (error <= bound).all(), f"off by {error.max()}; {bound} is allowed"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layer_1_msl_on_the_cpu_shim(shim: ShimDevice, case: Case) -> None:
    check(shim, case)


@functools.cache
def check_rounded_on(shim: ShimDevice, *case: Any) -> None:
    shim.shim.simdgroups, shim.shim.precision = True, "standard"
    try:
        check_rounded(shim, CLOSE, *case)
    finally:
        shim.shim.precision = "exact"


@pytest.mark.parametrize("case", ROUNDED, ids=lambda case: " ".join(map(str, case)))
def test_layer_1_operands_of_float16(shim: ShimDevice, case: tuple[Any, ...]) -> None:
    check_rounded_on(shim, *case)


def test_layer_1_activations_too_large_for_float16(shim: ShimDevice) -> None:
    """Up to a million they keep their size; beyond that they are cut off, not infinite."""
    with ShimDevice(seeds=1) as device, Bench(device) as bench:
        device.shim.precision = "standard"
        x = np.zeros((2, 32), np.float32)
        x[:, 0] = 1e6, -1e9
        weight = np.ones((1, 32), np.float16)
        out = bench.empty(2, 1)
        tensors = bench.put(x), bench.put_weight(weight.view(np.uint8), DType.F16, 32), out
        bench.run(lambda rec: ops.linear(rec, *tensors))
        assert bench.get(out)[:, 0].tolist() == [float(np.float16(1e6 / 16)) * 16, -65504 * 16]


def test_layer_1_a_grid_of_several_rows() -> None:
    """More groups than one row of the grid holds; surplus groups of the last row return at once."""
    with ShimDevice(seeds=1) as shim:
        large = case(EXACT, scale, (GRID_WIDTH * THREADS + 5,), 0)
        want, got = (results(device, large) for device in (CpuDevice(), shim))
        assert np.array_equal(want, got)


def test_layer_1_covers_every_kernel(shim: ShimDevice) -> None:
    """A kernel of the catalog without a case above fails here."""
    for case in CASES:
        check(shim, case)  # Cached if it ran before.
    for rounded in ROUNDED:
        check_rounded_on(shim, *rounded)
    assert shim.shim.ran == {name for name, kernel in CATALOG.items() if "metal" in kernel.targets}
