"""Large GEMMs: by Metal Performance Shaders if it is right, by the catalog's kernels otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.metal.devices import EMULATED
from tests.metal.standin import Gpu, bridge, installed
from tests.ops.tensors import NUMPY, Bench
from wasmetal import ops
from wasmetal.device import CommandList, Device, open_device
from wasmetal.ops import DType, Recorder, Tensor

pytestmark = pytest.mark.usefixtures("tried")

SIDE = 512
"""m, n and k of the smallest large GEMM."""
TOLERANCE = {DType.F32: 1e-5, DType.F16: 1e-3}
"""By type of the result, relative to its largest element."""
RNG = np.random.default_rng(4)


@pytest.fixture
def bench(metal: Device) -> Iterator[Bench]:
    with Bench(metal) as made:
        yield made


def check(got: np.ndarray, want: np.ndarray, kind: DType = DType.F32) -> None:
    assert np.abs(got - want.astype(np.float64)).max() <= TOLERANCE[kind] * np.abs(want).max()


def record(bench: Bench, *operations: Callable[[Recorder], None]) -> CommandList:
    commands = bench.device.record()
    for operation in operations:
        operation(Recorder(bench.info, commands))
    commands.finish()
    return commands


def gemms(commands: CommandList) -> int:
    """How many dispatches of the list MPS computes."""
    return commands.recording.gemms


def run(bench: Bench, *operations: Callable[[Recorder], None]) -> int:
    """Run operations as one list; return how many of them MPS computes."""
    commands = record(bench, *operations)
    bench.device.submit([commands]).wait(60)
    return gemms(commands)


def by_mps(device: Device, kinds: str = "f32 to f32") -> bool:
    """Whether MPS is used for these types."""
    used = [feature for feature in device.info.features if feature.startswith("large GEMMs by MPS")]
    return bool(used) and kinds in used[0]


def expected(metal: Device, count: int = 1, kinds: str = "f32 to f32") -> int:
    """``count`` if MPS is used, which it must be on the emulated GPU; else 0."""
    right = by_mps(metal, kinds)
    assert right or not EMULATED
    return count if right else 0


def normal(*shape: int, dtype: DType = DType.F32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(NUMPY[dtype])


def oracle(cpu: Device, operation: Callable[..., None], arrays: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    """The CPU device's result for packed arrays."""
    with Bench(cpu) as bench:
        tensors = [bench.put(array) for array in arrays]
        result = bench.put(out)
        bench.run(lambda rec: operation(rec, *tensors, result))
        return bench.get(result)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize(("kind", "result"), [(DType.F32, DType.F32), (DType.F16, DType.F32), (DType.F16, DType.F16)])
def test_matmul(
    metal: Device, cpu: Device, bench: Bench, kind: DType, result: DType, transpose_a: bool, transpose_b: bool
) -> None:
    """Strided rows, and no tensor at the beginning of its buffer; nothing else is written."""
    m, n, k = SIDE + 8, SIDE, SIDE + 24
    a = normal(*((k, m) if transpose_a else (m, k)), dtype=kind)
    b = normal(*((n, k) if transpose_b else (k, n)), dtype=kind)

    def matmul(rec: Recorder, *tensors: Tensor) -> None:
        ops.matmul(rec, *tensors, transpose_a=transpose_a, transpose_b=transpose_b)

    out = bench.empty(m, n, dtype=result, gap=16)
    tensors = bench.put(a, gap=8), bench.put(b, gap=24), out
    found = run(bench, lambda rec: matmul(rec, *tensors))
    assert found == expected(metal, kinds=f"{kind.suffix} to {result.suffix}")
    bench.only(out)
    want = oracle(cpu, matmul, [a, b], np.zeros((m, n), NUMPY[result]))
    check(bench.get(out), want, result)


@pytest.mark.parametrize("accumulate", [False, True])
def test_linear(metal: Device, cpu: Device, bench: Bench, accumulate: bool) -> None:
    x, weight, before = normal(SIDE, SIDE), normal(SIDE + 4, SIDE), normal(SIDE, SIDE + 4)

    def linear(rec: Recorder, *tensors: Tensor) -> None:
        ops.linear(rec, *tensors, accumulate=accumulate)

    out = bench.put(before, gap=4)
    tensors = bench.put(x, gap=4), bench.put(weight), out
    assert run(bench, lambda rec: linear(rec, *tensors)) == expected(metal)
    bench.only(out)
    check(bench.get(out), oracle(cpu, linear, [x, weight], before))


def test_a_small_gemm_is_by_our_kernels(metal: Device, cpu: Device, bench: Bench) -> None:
    x, weight = normal(40, 48), normal(33, 48)
    out = bench.empty(40, 33)
    tensors = bench.put(x), bench.put(weight), out
    assert run(bench, lambda rec: ops.linear(rec, *tensors)) == 0
    want = oracle(cpu, ops.linear, [x, weight], np.zeros((40, 33), np.float32))
    check(bench.get(out), want)


def matmul_of(bench: Bench, m: int, n: int, k: int, *, dtype: DType = DType.F32, gap: int = 0) -> int:
    tensors = bench.empty(m, k, dtype=dtype, gap=gap), bench.empty(k, n, dtype=dtype), bench.empty(m, n)
    return gemms(record(bench, lambda rec: ops.matmul(rec, *tensors)))


def test_which_gemms_are_large(metal: Device, bench: Bench) -> None:
    """Recorded only: enough multiplications, and no dimension too short."""
    assert matmul_of(bench, SIDE, SIDE, SIDE) == expected(metal)
    assert matmul_of(bench, SIDE, SIDE, SIDE - 4) == 0
    assert matmul_of(bench, 64, 4 * SIDE, 2 * SIDE) == expected(metal)
    assert matmul_of(bench, 60, 8 * SIDE, 2 * SIDE) == 0


def test_which_gemms_mps_does_not_have(metal: Device, bench: Bench) -> None:
    """Recorded only: batch metadata, batched matmuls, operands of different types, unaligned rows."""
    square = SIDE, SIDE
    assert matmul_of(bench, *square, SIDE, gap=4) == expected(metal)
    assert matmul_of(bench, *square, SIDE, gap=3) == 0
    assert matmul_of(bench, *square, SIDE, dtype=DType.F16, gap=4) == 0
    x, weight, out, half = bench.empty(*square), bench.empty(*square), bench.empty(*square), DType.F16
    batch = bench.batch(SIDE)
    assert gemms(record(bench, lambda rec: ops.linear(rec, x, weight, out))) == expected(metal)
    assert gemms(record(bench, lambda rec: ops.linear(rec, x, weight, out, batch=batch))) == 0
    halves = bench.empty(*square, dtype=half)
    assert gemms(record(bench, lambda rec: ops.linear(rec, x, halves, out))) == 0
    assert gemms(record(bench, lambda rec: ops.matmul(rec, x, weight, halves))) == 0
    batches = [bench.empty(2, *square) for _ in range(3)]
    assert gemms(record(bench, lambda rec: ops.matmul(rec, *batches))) == 0


def test_a_result_that_mps_cannot_count(emulated: Device) -> None:
    """MPS computes offsets up to row m + 2k of a result, which overflow at 2 GiB."""
    with Bench(emulated) as bench:
        buffer = emulated.allocate(64 << 20)
        a, b = Tensor(buffer, 0, DType.F32, (64, 4096)), Tensor(buffer, 0, DType.F32, (4096, 512))
        columns = (1 << 31) // (64 + 2 * 4096) // 4

        def found(row_stride: int) -> int:
            out = Tensor(buffer, 16 << 20, DType.F32, (64, 512), row_stride)
            return gemms(record(bench, lambda rec: ops.matmul(rec, a, b, out)))

        assert found(columns // 4 * 4) == 1
        assert found(columns // 4 * 4 + 4) == 0


def chain(bench: Bench) -> tuple[list[Callable[[Recorder], None]], Tensor, np.ndarray]:
    """Kernels, a GEMM, a GEMM of its result that accumulates, kernels; each depends on the one before."""
    x, y = normal(SIDE, SIDE), normal(SIDE, SIDE) / SIDE
    a, b, c, d = bench.put(x), bench.put(y), bench.empty(SIDE, SIDE), bench.put(x)
    rows, want = 4, x.astype(np.float64)
    some_a, some_c, some_d = (tensor.rows(0, rows) for tensor in (a, c, d))
    want[:rows] *= 4
    gemm = want @ y.T
    gemm[:rows] *= 3
    final = x + gemm @ y.T
    final[:rows] *= 5

    def times(tensor: Tensor, factor: float) -> Callable[[Recorder], None]:
        return lambda rec: ops.scale(rec, tensor, factor, tensor)

    operations = [
        times(some_a, 2),
        times(some_a, 2),
        lambda rec: ops.linear(rec, a, b, c),
        times(some_c, 3),
        lambda rec: ops.linear(rec, c, b, d, accumulate=True),
        times(some_d, 5),
    ]
    return operations, d, final


@pytest.mark.parametrize("cuts", [[], [2], [3], [2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("together", [True, False], ids=["one submission", "several"])
def test_gemms_and_kernels_see_each_others_results(
    metal: Device, bench: Bench, cuts: list[int], together: bool
) -> None:
    operations, out, want = chain(bench)
    bounds = [0, *cuts, len(operations)]
    lists = [record(bench, *operations[start:stop]) for start, stop in itertools.pairwise(bounds)]
    assert sum(map(gemms, lists)) == expected(metal, 2)
    before = metal.counters.dispatches
    if together:
        metal.submit(lists).wait(60)
    else:
        submissions = [metal.submit([commands]) for commands in lists]
        for submission in submissions:
            submission.wait(60)
    assert metal.counters.dispatches == before + len(operations)
    check(bench.get(out), want)


def test_gemms_alone_and_after_each_other(metal: Device, bench: Bench) -> None:
    """Two lists of one MPS GEMM each in one submission; the second needs the first's result."""
    x, y = normal(SIDE, SIDE), normal(SIDE, SIDE) / SIDE
    a, b, c, d = bench.put(x), bench.put(y), bench.empty(SIDE, SIDE), bench.put(x)
    first, second = lambda rec: ops.matmul(rec, a, b, c), lambda rec: ops.linear(rec, c, b, d, accumulate=True)
    lists = [record(bench, first, second) for _ in range(2)]
    assert [gemms(commands) for commands in lists] == [expected(metal, 2)] * 2
    metal.submit(lists).wait(60)
    want = x + 2 * (x.astype(np.float64) @ y @ y.T)
    check(bench.get(d), want)


def test_buffers_closed_while_a_gemm_is_under_way(metal: Device, bench: Bench) -> None:
    x, y = normal(SIDE, SIDE), normal(SIDE, SIDE)
    a, b, c = bench.put(x), bench.put(y), bench.empty(SIDE, SIDE)
    commands = record(bench, lambda rec: ops.matmul(rec, a, b, c))
    out = c.buffer.view()
    submission = metal.submit([commands])
    commands.close()
    for tensor in (a, b, c):
        tensor.buffer.close()
    submission.wait(60)
    got = out[c.offset :][: c.nbytes].view(np.float32).reshape(SIDE, SIDE)
    want = x.astype(np.float64) @ y
    check(got, want)


@pytest.mark.parametrize(
    ("mps", "problem"),
    [
        ("missing", "pyobjc-framework-MetalPerformanceShaders is not installed"),
        ("unsupported", "MPS does not support this GPU"),
        ("wrong", "wrong results for matmul_f32_f32"),
        ("few bits", "wrong results for matmul_f32_f32"),
        ("not a number", "wrong results for matmul_f32_f32"),
        ("gaps", "wrong results for matmul_f32_f32"),
    ],
)
def test_mps_that_does_not_work(open_on: Callable[[Gpu], Device], mps: str, problem: str) -> None:
    """The catalog's kernels then compute all GEMMs."""
    device = open_on(Gpu(mps=mps))
    with Bench(device) as bench:
        assert matmul_of(bench, SIDE, SIDE, SIDE) == 0
    assert f"no MPS for f32 to f32 ({problem})" in device.info.features
    assert not by_mps(device)


def test_types_are_tried_one_by_one(open_on: Callable[[Gpu], Device]) -> None:
    """MPS is tried at first use, for each combination of types, and used only for those that are right."""
    device = open_on(Gpu(mps="sums of few bits"))
    assert "large GEMMs by MPS (tried at first use)" in device.info.features
    with Bench(device) as bench:
        halves = bench.empty(SIDE, SIDE, dtype=DType.F16), bench.empty(SIDE, SIDE, dtype=DType.F16)
        out = bench.empty(SIDE, SIDE, dtype=DType.F16)
        assert gemms(record(bench, lambda rec: ops.matmul(rec, *halves, out))) == 0
        problem = "no MPS for f16 to f16 (wrong results for matmul_f16_f16)"
        assert device.info.features[-1] == problem
        assert matmul_of(bench, SIDE, SIDE, SIDE, dtype=DType.F16) == 1
        assert matmul_of(bench, SIDE, SIDE, SIDE) == 1
        assert device.info.features[-2:] == ("large GEMMs by MPS (f16 to f32, f32 to f32)", problem)
    assert device.counters.dispatches == 0  # trials do not count as the device's dispatches


@pytest.mark.parametrize("why", ["WASMETAL_NO_MPS=1", "a virtual GPU"])
def test_mps_switched_off(open_on: Callable[[Gpu], Device], monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """MPS is then not even loaded."""
    switched = why.startswith("WASMETAL")
    if switched:
        monkeypatch.setenv("WASMETAL_NO_MPS", "1")
    device = open_on(Gpu() if switched else Gpu(name="Apple Paravirtual device"))
    before = bridge.calls["MPSSupportsMTLDevice"]
    assert f"no MPS ({why})" in device.info.features
    with Bench(device) as bench:
        assert matmul_of(bench, SIDE, SIDE, SIDE) == 0
    assert bridge.calls["MPSSupportsMTLDevice"] == before


def test_mps_on_a_virtual_gpu_if_that_is_asked_for(
    open_on: Callable[[Gpu], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMETAL_NO_MPS", "0")
    with Bench(open_on(Gpu(name="Apple Paravirtual device"))) as bench:
        assert matmul_of(bench, SIDE, SIDE, SIDE) == 1


def test_opening_does_not_load_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    with installed(), open_device("metal") as device, Bench(device) as bench:
        loaded = import_module("wasmetal.device.libraries.mps").load_mps.cache_info
        matmul_of(bench, 64, 64, 64)
        assert loaded().currsize == 0
        matmul_of(bench, SIDE, SIDE, SIDE)
        assert loaded().currsize == 1
