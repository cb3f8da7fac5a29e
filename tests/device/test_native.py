"""The CPU device's compiled kernels: each against its NumPy kernel, on odd sizes and any number of threads."""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.ops.tensors import pool_bytes, random_weight
from wasmetal.device import open_device
from wasmetal.device import rows as rows_module
from wasmetal.device.cpu import library as libraries
from wasmetal.device.cpu.compile import TARGETS, compile_library
from wasmetal.device.cpu.library import Calls, Library, library
from wasmetal.device.rows import Rows
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, NO_BATCH, NO_SINKS, Access
from wasmetal.kernels.dtypes import KV, WEIGHTS, DType
from wasmetal.kernels.reference import KERNELS
from wasmetal.memory.pages import Pages, page_size

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels for this processor")

GENERATED = Path(libraries.__file__).parent / "generated"
ADDRESSES = os.environ.get("WASMETAL_TEST_SANITIZER") == "address"
"""Whether the checks are of addresses, in a process that runs with the sanitizer's allocator."""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with checks for undefined behaviour, or of addresses, which end the process."""
    pytest.importorskip("ziglang")
    found = library()
    assert found
    path = tmp_path_factory.mktemp("native") / found.name
    flags = ["-fsanitize=address"] if ADDRESSES else ["-fsanitize=undefined", "-fsanitize-trap=undefined"]
    compile_library(found.name, path, *flags)
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(ADDRESSES, reason="this is the run that it starts")
def test_under_the_address_sanitizer() -> None:
    """The tests of kernels once more, with a library that finds every access outside an array, a table or the stack."""
    pytest.importorskip("ziglang")
    gcc = shutil.which("gcc")  # zig has the instrumentation and no runtime
    found = gcc and subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not found or not Path(found.stdout.strip()).is_absolute():
        pytest.skip("GCC's libasan is not installed")
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=0",
        "LD_PRELOAD": str(Path(found.stdout.strip()).resolve()),
        "WASMETAL_TEST_SANITIZER": "address",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "checked",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout), done.stdout


@pytest.fixture(scope="module", params=["one thread", "three threads", pytest.param("checked", marks=pytest.mark.slow)])
def native(request: pytest.FixtureRequest) -> Library:
    found = library()
    assert found
    path = GENERATED / found.name
    if request.param == "checked":
        path = request.getfixturevalue("checked")
    elif request.param == "one thread" and found.name == "x86_64_v4.so":
        path = GENERATED / "x86_64_v3.so"  # older processors' library runs on this one too
    made = Library(path)
    made.threads = 1 if request.param == "one thread" else 3
    return made


def guarded(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that ends where pages begin that nobody may access."""
    if ADDRESSES:
        return array.copy()  # between bytes that the sanitizer watches
    size = -(-array.nbytes // page_size()) * page_size()
    pages = Pages(size + page_size())
    pages.open(0, size)
    copy = pages.view(size - array.nbytes, array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def run(native: Library, name: str, arrays: Sequence[NDArray[Any]], params: bytes) -> None:
    number = native.number(name)
    assert number is not None
    calls = Calls(native, [(number, [array.ctypes.data for array in arrays], params)], ctypes.c_uint8(0))
    assert calls.run(0, 60.0) == 1


def compare(
    native: Library,
    name: str,
    arrays: Sequence[NDArray[Any]],
    tolerance: float = 2e-5,
    size: float = 1e-6,
    **values: Any,
) -> None:
    """Run both on copies of the arrays; what they write agrees, and what they only read is as before.

    ``size``: of what is added up, to which the tolerance relates.
    """
    kernel = CATALOG[name]
    values |= {f"{each.name}_offset": values.get(f"{each.name}_offset", 0) for each in kernel.buffers}
    params = kernel.pack(**values)
    got, want = [guarded(array) for array in arrays], [array.copy() for array in arrays]
    run(native, name, got, params)
    with np.errstate(all="ignore"):
        KERNELS[name](kernel.unpack(params), *[array.view(np.uint8).reshape(-1) for array in want])()
    for buffer, mine, theirs, before in zip(kernel.buffers, got, want, arrays, strict=True):
        if buffer.access is Access.READ:
            assert (mine.view(np.uint8) == before.view(np.uint8)).all(), buffer.name
        else:
            scale = np.abs(theirs.astype(np.float64)).max(initial=size, where=np.isfinite(theirs))
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * scale, err_msg=buffer.name)


def floats(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


FOR_GPUS = ("norm_gemv", "gated_gemv", "rope_append", "rope_attention", "attention_part", "attention_merge", "prefill_")
"""Kernels that do several ops at once, which no one asks of a device that does not fuse."""


def test_every_kernel_but_matmul_is_compiled() -> None:
    found = library()
    assert found
    missing = {name for name in KERNELS if found.number(name) is None}
    assert missing == {name for name in KERNELS if name.startswith(("matmul", *FOR_GPUS))}
    assert found.number("gemm") is None


sizes = st.integers(1, 200)
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.name)
@given(st.data())
def test_linear(native: Library, dtype: DType, data: st.DataObject) -> None:
    if native.number(f"gemv_{dtype.suffix}") is None:
        pytest.skip("not compiled")
    seed, n, rows = data.draw(seeds), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 17))
    k = data.draw(st.integers(1, 1400 // dtype.block[0])) * dtype.block[0]
    # What GEMV binds begins and ends at multiples of 16 bytes.
    wide = -(-k // 4) * 4
    weight, exact = random_weight(np.random.default_rng(seed), dtype, n, k)
    weight, x = weight.reshape(-1), floats(seed + 1, rows, wide)
    size = float(np.abs(exact).max()) * math.sqrt(k)
    accumulate = data.draw(st.integers(0, 1))
    out = floats(seed + 2, n)
    compare(native, f"gemv_{dtype.suffix}", [weight, x[0], out], size=size, n=n, k=k, accumulate=accumulate, groups=1)
    batch = np.array([data.draw(st.integers(0, rows + 2))] + [0] * (2 * rows + 3), np.uint32)
    options = {
        "rows": rows,
        "n": n,
        "k": k,
        "x_stride": wide,
        "out_stride": n + 3,
        "accumulate": accumulate,
        "size": size,
    }
    out = floats(seed + 3, rows, n + 3)
    compare(native, f"gemm_{dtype.suffix}", [x, weight, out, batch], batch_row=0, **options)
    options["batch_offset"] = NO_BATCH
    compare(native, f"gemm_{dtype.suffix}", [x, weight, out, batch], batch_row=0, **options)
    ids = np.random.default_rng(seed).integers(0, n + 3, rows).astype(np.uint32)
    options = {"rows": rows, "columns": k, "out_stride": k + 1, "table_rows": n, "first_row": 0, "bound_rows": n}
    out = floats(seed, rows, k + 1)
    compare(native, f"embed_{dtype.suffix}", [weight, ids, out, batch], 0.0, batch_row=0, **options)


QUANTIZED = [dtype for dtype in WEIGHTS if dtype.quantized]


@pytest.mark.parametrize("dtype", QUANTIZED, ids=lambda dtype: dtype.name)
@given(st.data())
def test_rounded_activations(native: Library, dtype: DType, data: st.DataObject) -> None:
    """What is rounded is as described, with a scale for 16 or 32 activations; nothing else is."""
    seed, n = data.draw(seeds), data.draw(st.integers(1, 70))
    k = data.draw(st.integers(1, 2400 // dtype.block[0])) * dtype.block[0]
    weight, exact = random_weight(np.random.default_rng(seed), dtype, n, k)
    x, out = floats(seed + 1, k), floats(seed + 2, n)
    x[: data.draw(st.integers(0, k))] *= np.float32(data.draw(st.sampled_from([0.0, 1e-3, 100.0])))
    parts = x.reshape(-1, 16 if dtype in (DType.Q6_K, DType.Q8_16) else 32)
    peaks = np.abs(parts).max(axis=1, keepdims=True)
    steps = np.divide(np.float32(127), peaks, out=np.zeros_like(peaks), where=peaks > 0)
    rounded = (np.rint(parts * steps).astype(np.float64) * peaks / 127).reshape(-1)
    accumulate = data.draw(st.integers(0, 1))
    want = exact.reshape(n, k) @ rounded + (out if accumulate else 0)
    kernel = CATALOG[f"gemv_{dtype.suffix}"]
    params = kernel.pack(weight_offset=0, x_offset=0, out_offset=0, n=n, k=k, accumulate=accumulate, groups=1)
    got = guarded(out)
    run(native, f"gemv_rounded_{dtype.suffix}", [guarded(weight.reshape(-1)), guarded(x), got], params)
    size = float(np.abs(exact).max() * np.abs(x).max()) * math.sqrt(k) + 1
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * size)


@pytest.mark.parametrize("dtype", QUANTIZED, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shared", [True, False])
def test_rounded_activations_of_experts(native: Library, dtype: DType, shared: bool) -> None:
    """The same as each chosen expert's matrix by itself; with more slots than are prepared for at once."""
    n, k, slots = 37, 1280, 40
    weight, _ = random_weight(np.random.default_rng(7), dtype, 3 * n, k)
    x, out, ids = floats(8, slots, k), floats(9, slots, n), np.arange(slots, dtype=np.uint32) % 4
    shape = {"slots": slots, "experts": 3, "first_expert": 0, "bound_experts": 3, "n": n, "k": k, "groups": 1}
    shape |= {"first_column": 0, "columns": n, "x_slot": 0 if shared else k, "accumulate": 0}
    offsets = dict.fromkeys(("weight_offset", "x_offset", "out_offset"), 0)
    params = CATALOG[f"expert_gemv_{dtype.suffix}"].pack(**shape, **offsets, ids_offset=0)
    run(native, f"expert_gemv_rounded_{dtype.suffix}", [weight, x, ids, out], params)
    of_one = CATALOG[f"gemv_{dtype.suffix}"].pack(n=n, k=k, accumulate=0, groups=1, **offsets)
    for slot, expert in enumerate(np.minimum(ids, 2).tolist()):
        want, matrix = np.zeros(n, np.float32), weight.reshape(3, n, -1)[expert].copy()
        run(native, f"gemv_rounded_{dtype.suffix}", [matrix, x[0 if shared else slot].copy(), want], of_one)
        np.testing.assert_array_equal(out[slot], want)


words = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.name)
@given(st.data())
def test_experts(native: Library, dtype: DType, data: st.DataObject) -> None:
    """With ids of any value, and experts that are not all bound."""
    seed, n, rows = data.draw(seeds), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 150))
    slots, experts = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    first = data.draw(st.integers(0, experts - 1))
    k = data.draw(st.integers(1, 1100 // dtype.block[0])) * dtype.block[0]
    wide, bound = -(-k // 4) * 4, experts - first
    weight, exact = random_weight(np.random.default_rng(seed), dtype, bound * n, k)
    column = data.draw(st.integers(0, n - 1))
    shape = {"slots": slots, "experts": experts, "first_expert": first, "bound_experts": bound, "n": n, "k": k}
    shape |= {"first_column": column, "columns": n - column, "accumulate": data.draw(st.integers(0, 1))}
    options: dict[str, Any] = shape | {"size": float(np.abs(exact).max()) * math.sqrt(k)}
    some = data.draw(st.lists(words, min_size=slots, max_size=20))
    ids = np.resize(np.array(some, np.uint32), rows * slots)
    weight, x, out = weight.reshape(-1), floats(seed, rows, slots * wide), floats(seed + 1, rows, slots * n)
    if wide == k or slots == 1:
        arrays = [weight, x[0], ids[:slots], out[0]]
        compare(native, f"expert_gemv_{dtype.suffix}", arrays, x_slot=k, groups=1, **options)
    batch = np.array([data.draw(st.integers(0, rows + 2)), 0], np.uint32)
    options |= {"batch_row": 0, "rows": rows, "x_stride": slots * wide, "out_stride": slots * n, "x_slot": wide}
    arrays = [x, weight, ids, out, batch]
    compare(native, f"expert_gemm_{dtype.suffix}", arrays, **options)
    compare(native, f"expert_gemm_{dtype.suffix}", arrays, batch_offset=NO_BATCH, **(options | {"x_slot": 0}))


@given(seeds, st.integers(1, 9), st.integers(1, 140), st.integers(0, 3), st.data())
def test_routing(native: Library, seed: int, rows: int, columns: int, gap: int, data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, min(columns, 128)))
    logits, batch = floats(seed, rows, columns + gap), np.array([rows - seed % 2, 0], np.uint32)
    logits[:, :: max(1, columns // 3)] = (-math.inf, 0.5, 3.0)[seed % 3]
    if seed % 3 == 0 and seed % 5 == 0:
        logits[:] = -math.inf
    ids, weights = np.zeros((rows, slots), np.uint32), floats(seed + 1, rows, slots)
    shape = {"batch_row": 0, "rows": rows, "slots": slots, "columns": columns}
    strides = {"logits_stride": columns + gap, "normalized": data.draw(st.integers(0, 1))}
    compare(native, "top_k", [logits, ids, weights, batch], **shape, **strides)
    x, out = floats(seed + 2, rows, slots * columns + gap), floats(seed + 3, rows, columns + gap)
    strides = {"x_stride": slots * columns + gap, "out_stride": columns + gap, "accumulate": seed % 2}
    compare(native, "weighted_sum", [x, weights, out, batch], **shape, **strides)


@given(seeds, st.integers(1, 9), st.integers(1, 9000), st.integers(0, 3))
def test_rows(native: Library, seed: int, rows: int, columns: int, gap: int) -> None:
    columns = columns if seed % 8 == 0 else columns % 100 + 1
    stride = columns + gap
    a, b, out = (floats(seed + i, rows, stride) for i in range(3))
    shape = {"rows": rows, "columns": columns, "x_stride": stride, "out_stride": stride}
    batch = np.array([rows - 1, 0, 0, 0], np.uint32)
    strides = {"a_stride": stride, "b_stride": stride, "out_stride": stride}
    compare(native, "add", [a, b, out], 0.0, rows=rows, columns=columns, **strides)
    compare(native, "scale", [a, out], 0.0, factor=0.37, **shape)
    vectors = a.size // 4
    compare(native, "copy", [a, out], 0.0, vectors=vectors)
    strides = {"gate_stride": stride, "up_stride": stride, "out_stride": stride, "batch_row": 0}
    compare(native, "silu_mul", [30 * a, b, out, batch], rows=rows, columns=columns, **strides)
    compare(native, "gelu_mul", [30 * a, b, out, batch], rows=rows, columns=columns, **strides)
    compare(native, "swiglu_oai", [8 * a, 8 * b, out, batch], rows=rows, columns=columns, **strides)
    compare(native, "gelu", [3 * a, out, batch], batch_row=0, **shape)
    compare(native, "rms_norm", [a, b, out, batch], eps=1e-5, batch_row=0, heads=1, **shape)
    compare(native, "layer_norm", [a, b, b[::-1].copy(), out, batch], eps=1e-2, batch_row=0, **shape)
    of_heads = shape | {"heads": 3, "columns": max(1, columns // 3), "x_stride": 3 * stride, "out_stride": 3 * stride}
    compare(native, "rms_norm", [np.tile(a, 3), b, np.tile(out, 3), batch], eps=1e-5, batch_row=0, **of_heads)
    a[:, :: max(1, columns // 3)] = (-math.inf, math.nan, 3.0)[seed % 3]
    compare(native, "softmax", [a, out], **shape)
    result = np.zeros(rows, np.int32)
    compare(native, "argmax", [a, result], 0.0, rows=rows, columns=columns, x_stride=stride)


@given(seeds, st.integers(1, 4), st.integers(1, 3000), st.integers(0, 3), st.integers(1, 64), st.integers(1, 9))
def test_top_logits(native: Library, seed: int, rows: int, columns: int, gap: int, k: int, parts: int) -> None:
    """The same keys, in the same places; sums within 2e-6."""
    logits = 4 * floats(seed, rows, columns + gap)
    logits[:, :: max(1, columns // 7)] = (-math.inf, math.nan, 3.0, -0.0)[seed % 4]
    logits = guarded(logits)
    shape = {"rows": rows, "k": k, "parts": parts, "inverse_temperature": np.float32(seed % 5 / 2)}
    parting = CATALOG["top_logits_part"].pack(
        logits_offset=0, scratch_offset=0, columns=columns, logits_stride=columns + gap, **shape
    )
    offsets = {f"{name}_offset": 0 for name in ("scratch", "ids", "values", "totals")}
    merging = CATALOG["top_logits_merge"].pack(**shape, **offsets)
    results = []
    for native_too in (False, True):
        scratch = guarded(np.zeros((rows, k + 1, parts, 2), np.uint32))
        ids, values, totals = (guarded(np.zeros((rows, n), np.uint32)) for n in (k, k, 2))
        for name, params, arrays in (
            ("top_logits_part", parting, [logits, scratch]),
            ("top_logits_merge", merging, [scratch, ids, values, totals]),
        ):
            if native_too:
                run(native, name, arrays, params)
            else:
                with np.errstate(all="ignore"):
                    KERNELS[name](
                        CATALOG[name].unpack(params), *[array.view(np.uint8).reshape(-1) for array in arrays]
                    )()
        results.append((scratch, ids, values, totals))
    want, got = results
    for mine, theirs in zip((got[0][:, :k], *got[1:3]), (want[0][:, :k], *want[1:3]), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in ((got[0][:, k], want[0][:, k]), (got[3], want[3])):
        np.testing.assert_allclose(mine.view(np.float32), theirs.view(np.float32), rtol=2e-6)


def test_exponentials(native: Library) -> None:
    """Within two units in the last place, wherever float32 holds the result."""
    x = np.concatenate([np.linspace(-110, 88, 100_003), [np.inf, -np.inf, np.nan]]).astype(np.float32)
    gate, one, out = -x, np.ones_like(x), np.zeros_like(x)
    kernel = CATALOG["silu_mul"]
    strides = {"gate_stride": len(x), "up_stride": len(x), "out_stride": len(x), "batch_row": 0}
    params = kernel.pack(
        gate_offset=0, up_offset=0, out_offset=0, batch_offset=NO_BATCH, rows=1, columns=len(x), **strides
    )
    run(native, "silu_mul", [gate, one, out, np.zeros(4, np.uint32)], params)
    with np.errstate(all="ignore"):
        exact = gate.astype(np.float64) / (1 + np.exp(x.astype(np.float64)))
    finite = np.isfinite(exact)
    np.testing.assert_allclose(out[finite], exact[finite], rtol=6e-7, atol=1e-44)
    assert np.isnan(out[-1])


@pytest.mark.parametrize("dtype", KV, ids=lambda dtype: dtype.suffix)
@given(st.data())
def test_attention(native: Library, dtype: DType, data: st.DataObject) -> None:
    """With metadata that a hostile guest may have written."""
    seed, rows = data.draw(seeds), data.draw(st.integers(1, 6))
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    head_dim = data.draw(st.integers(1, 40)) * 4 if dtype is not DType.Q8_0 else data.draw(st.integers(1, 4)) * 64
    page_size, pages, entries, sequences = (data.draw(st.integers(1, 9)) for _ in range(4))
    heads = kv_heads * group
    first = data.draw(st.integers(0, heads - 1))
    values = floats(seed, 2, pages * page_size, kv_heads, head_dim)
    pool: NDArray[Any] = (
        pool_bytes(values).reshape(2, pages * page_size, -1)
        if dtype is DType.Q8_0
        else values.astype(np.float32 if dtype is DType.F32 else np.float16)
    )
    q, out = floats(seed + 1, rows, heads * head_dim), floats(seed + 2, rows, heads * head_dim)
    batch = np.array(data.draw(st.lists(words, min_size=2 + 2 * rows, max_size=2 + 2 * rows)), np.uint32)
    batch[0] = data.draw(st.integers(0, rows))
    tables = sequences * (1 + entries)
    words_of_sequences = np.array(data.draw(st.lists(words, min_size=tables, max_size=tables)), np.uint32)
    paged = {"pages": pages, "page_size": page_size, "sequence_count": sequences, "table_length": entries}
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "q_stride": heads * head_dim}
    shape |= {"first_head": first, "head_count": heads - first, "out_stride": heads * head_dim}
    sinks = 5 * floats(seed + 5, heads)
    arrays = [q, pool[0], pool[1], batch, words_of_sequences, sinks, out]
    shape["window"] = data.draw(st.integers(0, 12))
    shape["sinks_offset"] = data.draw(st.sampled_from([0, NO_SINKS]))
    compare(native, f"attention_{dtype.suffix}", arrays, batch_row=0, rows=rows, scale=0.2, **shape, **paged)
    columns = kv_heads * head_dim
    k, v = floats(seed + 3, rows, columns), floats(seed + 4, rows, columns)
    slots = [each % (page_size * entries) for each in batch[2::2].tolist()]
    batch[2::2] = np.unique(slots)[0] + np.arange(rows)  # no two rows write to one slot
    batch[3::2] = 0
    words_of_sequences[1 : 1 + entries] = np.arange(entries) % pages
    if entries <= pages:
        arrays = [k, v, pool[0], pool[1], batch, words_of_sequences]
        strides = {"columns": columns, "k_stride": columns, "v_stride": columns}
        compare(native, f"kv_append_{dtype.suffix}", arrays, 0.0, batch_row=0, rows=rows, **strides, **paged)


@given(seeds, st.integers(1, 5), st.integers(1, 4), st.integers(1, 40), st.booleans(), st.lists(words, min_size=12))
def test_rope(
    native: Library, seed: int, rows: int, heads: int, pairs: int, interleaved: bool, metadata: list[int]
) -> None:
    head_dim, positions = 2 * pairs + seed % 3, 17
    x, table = floats(seed, rows, heads * head_dim), floats(seed + 1, positions, 2 * pairs)
    batch = np.array([rows, *metadata[:11]], np.uint32)
    shape = {"heads": heads, "head_dim": head_dim, "x_stride": heads * head_dim, "pairs": pairs}
    arrays = [x, table, batch]
    compare(native, "rope", arrays, batch_row=0, rows=rows, positions=positions, interleaved=interleaved, **shape)


# ---- Running lists


@pytest.mark.parametrize("much", [0, 1 << 40])
@given(data=st.data())
def test_rows_are_copied(native: Library, much: int, data: st.DataObject) -> None:
    """Past the caches or not, from anywhere to anywhere, and no byte beside them."""
    rows, at = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 70))
    sizes = data.draw(st.lists(st.integers(0, 700), min_size=1, max_size=5))
    rng = np.random.default_rng(rows)
    sources = [rng.integers(0, 256, (rows, size + 3), np.uint8)[:, 2 : 2 + size] for size in sizes]
    targets = [np.zeros(at + sum(sizes) + 9, np.uint8) for _ in range(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libraries, "_MUCH", much)
        patch.setattr(rows_module, "library", lambda: native)
        Rows(sources).copy(0, [target.ctypes.data + at for target in targets[:1]])
        Rows(sources).copy(1, [target.ctypes.data + at for target in targets[1:]])
    for row, target in enumerate(targets):
        assert target.tobytes() == b"".join([bytes(at), *(each[row].tobytes() for each in sources), bytes(9)])


def additions(native: Library, count: int, stop: ctypes.c_uint8) -> tuple[Calls, NDArray[np.float32]]:
    """x += 1, many times, on enough elements for several threads."""
    x, one = np.zeros(100_000, np.float32), np.ones(100_000, np.float32)
    strides = {f"{name}_stride": 1 for name in ("a", "b", "out")} | {f"{name}_offset": 0 for name in ("a", "b", "out")}
    params = CATALOG["add"].pack(rows=1, columns=x.size, **strides)
    number = native.number("add")
    assert number is not None
    addresses = [array.ctypes.data for array in (x, one, x)]
    calls = Calls(native, [(number, addresses, params)] * count, stop)
    calls.keep = one  # type: ignore[attr-defined]
    return calls, x


def test_a_list_runs_in_pieces(native: Library) -> None:
    calls, x = additions(native, 100, ctypes.c_uint8(0))
    assert calls.run(0, 0.0) == 1
    assert calls.run(1, 0.0) == 2
    assert (x == 2).all()
    assert calls.run(2, 60.0) == 100
    assert (x == 100).all()


def test_a_list_is_stopped(native: Library) -> None:
    stop = ctypes.c_uint8(0)
    calls, x = additions(native, 200_000, stop)
    reached: list[int] = []
    thread = threading.Thread(target=lambda: reached.append(calls.run(0, 600.0)))
    thread.start()
    stop.value = 1
    thread.join(60)
    assert 0 < reached[0] < 200_000
    assert (x == reached[0]).all()


def test_lists_of_several_threads_do_not_wait_for_each_other(native: Library) -> None:
    stop = ctypes.c_uint8(0)
    endless, _ = additions(native, 200_000, stop)
    thread = threading.Thread(target=lambda: endless.run(0, 600.0))
    thread.start()
    calls, x = additions(native, 20, ctypes.c_uint8(0))
    assert calls.run(0, 60.0) == 20
    stop.value = 1
    thread.join(60)
    assert (x == 20).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")
def test_a_forked_process_has_threads_of_its_own(native: Library) -> None:
    calls, x = additions(native, 10, ctypes.c_uint8(0))
    calls.run(0, 60.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if calls.run(0, 60.0) == 10 and (x == 20).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    calls.run(0, 60.0)
    assert (x == 20).all()


# ---- Which library


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["x86_64_v3.so", "x86_64_v4.so", "aarch64.so", "arm64.dylib"])
def test_the_libraries_are_current(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    compile_library(name, tmp_path / name)
    same = (tmp_path / name).read_bytes() == (GENERATED / name).read_bytes()
    assert same, "not what the sources give: run python -m wasmetal.device.cpu.compile"


def test_every_library_is_checked() -> None:
    assert sorted(path.name for path in GENERATED.iterdir()) == sorted([*TARGETS, "README"])


@pytest.mark.slow  # It compiles what the tests above have compiled.
def test_the_command_line_checks() -> None:
    pytest.importorskip("ziglang")
    command = [sys.executable, "-m", "wasmetal.device.cpu.compile", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("system", "machine", "flags", "name"),
    [
        ("linux", "x86_64", {"avx2", "fma", "f16c", "bmi2"}, "x86_64_v3.so"),
        ("linux", "x86_64", {"avx2", "fma", "f16c", "bmi2", "avx512f"}, "x86_64_v3.so"),
        ("linux", "x86_64", {"sse2"}, None),
        ("linux", "aarch64", {"asimddp", "asimdhp"}, "aarch64.so"),
        ("linux", "riscv64", set(), None),
        ("darwin", "arm64", set(), "arm64.dylib"),
        ("darwin", "x86_64", set(), None),
    ],
)
def test_the_library_suits_the_processor(system: str, machine: str, flags: set[str], name: str | None) -> None:
    assert libraries._suitable(system, machine, flags) == name


@pytest.mark.parametrize("wanted", ["0", "-1", "two", "1025"])
def test_threads_are_a_number(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("WASMETAL_THREADS", wanted)
    with pytest.raises(DeviceError, match="WASMETAL_THREADS"):
        libraries.thread_count()


def test_what_the_device_says_of_itself() -> None:
    found = library()
    assert found
    with open_device("cpu") as device, open_device("reference") as oracle:
        assert found.name in device.info.driver
        assert not device.info.expands_weights
        assert oracle.info.spec == "reference:0"
        assert oracle.info.expands_weights
