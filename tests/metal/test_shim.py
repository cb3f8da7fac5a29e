"""The CPU shim for Metal kernels: what it computes, and which errors of kernels it notices."""

from __future__ import annotations

import numpy as np
import pytest

from tests.metal.shim import ShimCompileError, ShimError, compile_library
from wasmetal.kernels.catalog import CATALOG, NO_BATCH

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
ARGUMENTS = (
    "device float* out [[buffer(0)]], device const float* x [[buffer(1)]], constant uint& n [[buffer(2)]], "
    "uint3 group [[threadgroup_position_in_grid]], uint i [[thread_index_in_threadgroup]]"
)
FLAGS = "mem_flags::mem_threadgroup"


def run(body, *, before="", out=128, x=None, n=0, groups=(1, 1, 1), threads=(128, 1, 1), seed=0):
    """The output of a kernel with this body, in which out, x, n, group and i (the thread) are defined."""
    source = f"{HEADER}{before}\nkernel void test({ARGUMENTS})\n{{\n{body}\n}}\n"
    function = compile_library(source).functions["test"]
    result = np.zeros(out, np.float32)
    arrays = [result, np.arange(128, dtype=np.float32) if x is None else x, np.array([n], np.uint32)]
    function.run({k: (a.ctypes.data, a.nbytes) for k, a in enumerate(arrays)}, groups, threads, seed=seed)
    return result


LANES = np.arange(128, dtype=np.float32).reshape(4, 32)  # The values of x, a row to a simdgroup.


@pytest.mark.parametrize(
    ("call", "want"),
    [
        ("simd_sum(x[i])", LANES.sum(1, keepdims=True)),
        ("simd_max(x[i])", LANES.max(1, keepdims=True)),
        ("simd_min(x[i])", LANES.min(1, keepdims=True)),
        ("simd_sum(float4(x[i], 1.0, 2.0, 3.0)).y", 32),
        ("simd_product(i % 32 < 5 ? 2.0 : 1.0)", 32),
        ("float(simd_or(1u << i % 8))", 255),
        ("float(simd_and(i | 4))", (LANES[:, :1].astype(int) | 4)),
        ("simd_prefix_inclusive_sum(x[i])", LANES.cumsum(1)),
        ("simd_prefix_exclusive_sum(x[i])", LANES.cumsum(1) - LANES),
        ("simd_broadcast(x[i], 7)", LANES[:, 7:8]),
        ("simd_broadcast_first(x[i])", LANES[:, :1]),
        ("simd_shuffle(x[i], ushort(31 - i % 32))", LANES[:, ::-1]),
        ("simd_shuffle_xor(x[i], 3)", LANES[:, np.arange(32) ^ 3]),
        ("simd_shuffle_up(x[i], 2)", LANES[:, [0, 1, *range(30)]]),
        ("simd_shuffle_down(x[i], 2)", LANES[:, [*range(2, 32), 30, 31]]),
        ("float(simd_is_first())", [1] + 31 * [0]),
        ("float(simd_any(i == 3)) + 2.0 * float(simd_all(i < 64))", [[3], [2], [0], [0]]),
        ("float(uint64_t(simd_ballot(i % 2 == 1)))", 0xAAAAAAAA),
    ],
)
def test_simd_functions(call, want):
    assert (run(f"out[i] = {call};").reshape(4, 32) == want).all()


def test_lanes_that_have_left_take_no_part():
    got = run("if (i % 32 < 3) return; out[i] = simd_sum(1.0) + 100.0 * float(simd_is_first());").reshape(4, 32)
    assert (got == 3 * [0] + [129] + 28 * [29]).all()
    got = run("if (i % 32 < 3) return; out[i] = simd_shuffle(x[i], 0);").reshape(4, 32)
    assert np.isnan(got[:, 3:]).all()


def test_simdgroup_matrices():
    rng = np.random.default_rng(1)
    a, b, c = rng.standard_normal((3, 8, 8)).astype(np.float32)
    got = run(
        """
        threadgroup float staged[64];
        simdgroup_float8x8 a, b, c, d;
        simdgroup_load(a, x, 8);
        simdgroup_load(b, x + 64, 8, ulong2(0), true);
        simdgroup_load(c, x + 128, 8);
        simdgroup_multiply_accumulate(d, a, b, c);
        simdgroup_store(d, staged, 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        out[i] = staged[i];
        out[i + 32] = staged[i + 32];
        """,
        out=64,
        x=np.concatenate([a, b, c]),
        threads=(32, 1, 1),
    ).reshape(8, 8)
    assert np.allclose(got, a @ b.T + c, atol=1e-5)


def test_vectors_halves_and_atomics():
    got = run(
        """
        float4 v = float4(float2(1.0, 2.0), 3.0, x[4]);
        v.xy += v.zw;
        half h = half(0.1);
        threadgroup atomic_uint count;
        if (i == 0) atomic_store_explicit(&count, 0u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        atomic_fetch_add_explicit(&count, 2u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float parts[6] = {dot(v, float4(1.0)), float(h), float(as_type<ushort>(h)), max(v.x, 9.0),
                          float(atomic_load_explicit(&count, memory_order_relaxed)), exp(float2(0.0, 1.0)).y};
        if (i < 6) out[i] = parts[i];
        """
    )
    want = [17, np.float16(0.1), np.float16(0.1).view(np.uint16), 9, 256, np.exp(np.float32(1))]
    assert np.allclose(got[:6], np.array(want, np.float32), rtol=1e-7)


def test_positions():
    source = HEADER + (
        "kernel void test(device uint* out [[buffer(0)]], uint3 at [[thread_position_in_grid]], "
        "uint3 grid [[threads_per_grid]], uint2 group [[threadgroup_position_in_grid]], "
        "uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]], "
        "uint width [[threads_per_simdgroup]], uint3 size [[threads_per_threadgroup]])\n"
        "{ uint i = (at.z * grid.y + at.y) * grid.x + at.x; out[i] = i * 1000 + group.y * size.y * 100 "
        "+ simdgroup * width + lane; }"
    )
    out = np.zeros((4, 6, 14), np.uint32)  # Groups of 2 x 3 x 7 threads, of which there are 2 x 2 x 2.
    buffers = {0: (out.ctypes.data, out.nbytes)}
    compile_library(source).functions["test"].run(buffers, (2, 2, 2), (7, 3, 2))
    z, y, x = np.meshgrid(range(4), range(6), range(14), indexing="ij")
    within = (z % 2 * 3 + y % 3) * 7 + x % 7
    assert (out == np.arange(out.size).reshape(out.shape) * 1000 + y // 3 * 300 + within).all()


# ---- What Metal's compiler refuses.

SPACES = "EntryPointParams_0 constant* entryPointParams_0;", "EntryPointParams_0 device* entryPointParams_0;"


@pytest.mark.parametrize(
    ("body", "before", "message"),
    [
        ("device const uint* p = &n; out[i] = float(*p);", "", "constant"),
        ("threadgroup float t[4]; device float* p = t; *p = 1.0;", "", "__local"),
        ("n = 3u;", "", "read-only|constant address space|const"),
        ("float* p = out; *p = 1.0;", "", "pointer type must have explicit address space qualifier"),
        ("set(out);", "void set(float* p) { *p = 1.0; }", "pointer type must have explicit address space qualifier"),
        ("thread float device* p; p = out;", "", "multiple address spaces"),
        ("out[i] = table[i];", "static const float table[2] = {1.0, 2.0};", "constant address space"),
        ("double y = x[i]; out[i] = float(y);", "", "double"),
        ("out[i] = float(as_type<half>(n));", "", "bit_cast"),
        ("out[i] = float4(1.0);", "", "incompatible|cannot"),
        ("out[i] = nothing(x[i]);", "", "program_source:6:10: error: use of undeclared identifier 'nothing'"),
    ],
)
def test_refused_by_the_compiler(body, before, message):
    with pytest.raises(ShimCompileError, match=message):
        run(body, before=before)


def test_a_kernel_with_a_wrong_address_space():
    source = CATALOG["rms_norm"].code("metal").decode()
    assert SPACES[0] in source
    with pytest.raises(ShimCompileError, match="address space"):
        compile_library(source.replace(*SPACES))


# ---- What a GPU would not notice.

BARRIER = f"threadgroup_barrier({FLAGS});"
SHARE = "threadgroup float t[128]; t[i] = x[i];"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("out[i + 1] = 1.0;", r"thread \(127, 0, 0\) of group \(0, 0, 0\): writes 4 bytes at byte 512 of buffer 0"),
        ("out[i] = x[i - 1];", r"thread \(0, 0, 0\) of group \(0, 0, 0\): reads 4 bytes .* of buffer"),
        ("out[0] = (*(device const float4*)(x + 1)).x;", "reads 16 bytes at a misaligned address"),
        ("threadgroup array<float, 128> t; t[i + 1] = x[i];", "index 128 of an array of 128"),
        ("thread array<float, 4> t; t[n + i] = x[i]; out[i] = t[0];", r"index \d+ of an array of 4"),
        ("threadgroup float t[4][4]; if (i < 8) t[0][i] = x[i];", "outside of an array"),
        ("threadgroup float t[128]; *(&t[0] + 2 * i) = 1.0;", "outside every threadgroup variable"),
        (f"if (i < 64) {BARRIER}", "diverged: thread 0 waits at the threadgroup barrier of line 6, thread 64 has left"),
        (f"if (i == 99) return; {BARRIER}", "diverged: thread 0 waits .*, thread 99 has left the kernel"),
        (f"if (i < 32) {BARRIER}\nelse {BARRIER}", "thread 0 waits .* line 6, thread 32 waits .* line 7"),
        (f"if (i < 4) {BARRIER}\nelse out[i] = simd_sum(x[i]);", "thread 4 waits at the simd function of line 7"),
        ("threadgroup float t[128]; out[i] = t[i];", "reads byte .* nothing has written"),
        (f"{SHARE} out[i] = t[127 - i];", "nothing has written|with no barrier between"),
        (f"{SHARE} {BARRIER} out[i] = t[127 - i]; t[i] = 0.0;", "with no barrier between"),
        (f"{SHARE} threadgroup_barrier(mem_flags::mem_device); out[i] = t[127 - i];", "with no barrier between"),
        (f"{SHARE} simdgroup_barrier({FLAGS}); out[i] = t[127 - i];", "nothing has written|with no barrier between"),
        (
            "threadgroup float t[1]; t[0] = x[i];",
            "which another thread writes with no barrier between",
        ),
        ("threadgroup float t[8193]; t[i] = 1.0;", "more threadgroup memory than 32768 bytes"),
        ("out[i] = float(i / n);", "divides an integer by zero"),
        ("out[i] = float(int(x[i] * 1e30));", "makes an integer of a float"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noticed_when_it_runs(body, message, seed):
    with pytest.raises(ShimError, match=message):
        run(body, seed=seed)


def test_two_threadgroup_variables_on_a_line():
    body = f"threadgroup float a[128]; threadgroup float b[128]; a[i] = x[i]; b[i] = 1; {BARRIER} out[i] = a[127 - i];"
    assert (run(body) == np.arange(128)[::-1]).all()


def test_a_simdgroup_barrier_orders_its_simdgroup():
    body = f"{SHARE} simdgroup_barrier({FLAGS}); out[i] = t[i ^ 31]; simdgroup_barrier({FLAGS}); t[i] = 0.0;"
    assert (run(body) == np.arange(128) ^ 31).all()


@pytest.mark.parametrize("kernel", ["rms_norm", "softmax"])
def test_a_kernel_without_one_of_its_barriers(kernel):
    source = CATALOG[kernel].code("metal").decode()
    run_rows(kernel, compile_library(source))
    *needed, _ = (i for i in range(len(source)) if source.startswith(BARRIER, i))  # After the last comes no reduction.
    assert needed
    for at in needed:
        mutant = compile_library(source[:at] + source[at + len(BARRIER) :])
        with pytest.raises(ShimError, match=r"nothing has written|with no barrier between"):
            run_rows(kernel, mutant)


def run_rows(name, library):
    kernel = CATALOG[name]
    rows, columns = 3, 300
    x, out, weight = np.ones((rows, columns), np.float32), np.zeros((rows, columns), np.float32), np.ones(columns)
    fields = {"batch_row": 0, "rows": rows, "columns": columns, "x_stride": columns, "out_stride": columns, "eps": 1e-5}
    fields["heads"] = 1
    fields |= {f"{buffer.name}_offset": 0 for buffer in kernel.buffers} | {"batch_offset": NO_BATCH}
    params = kernel.pack(**{field: fields[field] for field, _ in kernel.params})
    arrays = {"x": x, "out": out, "weight": weight.astype(np.float32), "batch": x}
    bound = [np.frombuffer(params, np.uint8), *(arrays[buffer.name] for buffer in kernel.buffers)]
    buffers = {i: (array.ctypes.data, array.nbytes) for i, array in enumerate(bound)}
    library.functions[name].run(buffers, (rows, 1, 1), kernel.threads)


def test_the_order_of_threads_and_groups_varies():
    """A race through device memory is not noticed, but its result depends on the seed."""
    body = "if (i == 0) for (uint k = 0; k < 128; k++) out[k] = 0.0;\nout[0] = float(group.x * 128 + i);"
    last = [run(body, groups=(3, 1, 1), seed=seed)[0] for seed in range(3)]
    assert len(set(last)) > 1


def test_bindings():
    source = f"{HEADER}kernel void test({ARGUMENTS}) {{ out[i] = x[i] + float(n); }}"
    function = compile_library(source).functions["test"]
    x = np.zeros(128, np.float32)
    whole = (x.ctypes.data, x.nbytes)
    with pytest.raises(ShimError, match="test: buffer 1 is not bound"):
        function.run({0: whole, 2: whole}, (1, 1, 1), (128, 1, 1))
    with pytest.raises(ShimError, match="a group has 1 to 1024"):
        function.run({0: whole, 1: whole, 2: whole}, (1, 1, 1), (1025, 1, 1))
    with pytest.raises(ShimError, match="reads 4 bytes at byte 0 of buffer 2, which has 0"):
        function.run({0: whole, 1: whole, 2: (x.ctypes.data + 1024, 0)}, (1, 1, 1), (128, 1, 1))
