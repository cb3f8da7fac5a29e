"""cuBLAS as the library of large GEMMs: which it takes, what it computes, and what is said without it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.conftest import HAS_CUDA
from tests.ops.tensors import Bench
from wasmetal import ops
from wasmetal.device import Device, open_device
from wasmetal.device.gemm_trials import gemm
from wasmetal.device.trial import ROUNDED, find_problem
from wasmetal.kernels.dtypes import WEIGHTS, DType

pytest.importorskip("cuda.bindings.driver")

from wasmetal.device.cuda import cublas
from wasmetal.errors import DeviceError

needs_gpu = pytest.mark.skipif(not HAS_CUDA, reason="no GPU of NVIDIA's")


@pytest.fixture
def forgotten() -> Iterator[None]:
    """As if the library had not been looked for yet."""
    cublas.load_cublas.cache_clear()
    yield
    cublas.load_cublas.cache_clear()


@pytest.fixture
def device(forgotten: None) -> Iterator[Device]:
    """A device that uses the library."""
    try:
        cublas.load_cublas()
    except DeviceError as error:
        pytest.skip(str(error))
    with open_device("cuda", "standard") as device:
        yield device


def test_switched_off(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_NO_CUBLAS", "1")
    with pytest.raises(DeviceError, match="WASMETAL_NO_CUBLAS is set"):
        cublas.load_cublas()


@needs_gpu
def test_without_it_kernels_run(forgotten: None, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("WASMETAL_NO_CUBLAS", "1")
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    with open_device("cuda", "standard") as device:
        assert find_problem(device, [gemm("f16", 150, 136, 96, tolerance=ROUNDED)]) is None
        assert "no large GEMMs by cuBLAS (WASMETAL_NO_CUBLAS is set)" in device.info.features


@needs_gpu
def test_a_library_that_is_gone_is_not_asked(device: Device, monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    """It has passed its trial, and a later process does not find it."""
    product = [gemm("f16", 150, 136, 96, tolerance=ROUNDED)]
    assert find_problem(device, product) is None
    cublas.load_cublas.cache_clear()
    monkeypatch.setenv("WASMETAL_NO_CUBLAS", "1")
    with open_device("cuda", "standard") as other:
        assert find_problem(other, product) is None
        assert cublas.NAME not in other.info.features


@needs_gpu
@pytest.mark.parametrize("kind", [dtype.suffix for dtype in WEIGHTS if dtype is not DType.F32])
def test_products(device: Device, kind: str) -> None:
    sizes = (16, 1024, 2048), (65, 136, 256), (512, 3072, 2048)
    trials = [gemm(kind, *size, accumulate=add, tolerance=ROUNDED) for size in sizes for add in (False, True)]
    assert find_problem(device, trials) is None
    assert cublas.NAME in device.info.features


@pytest.mark.parametrize(
    ("kind", "rows", "n", "k", "pays"),
    [
        ("f16", 1, 8192, 2048, False),
        ("f16", 2, 8192, 2048, True),
        ("f16", 2, 512, 512, False),
        ("f16", 65, 96, 32, True),
        ("q4_0", 1, 8192, 8192, False),
        ("q4_0", 16, 2048, 2048, False),
        ("q4_0", 16, 8192, 2048, True),
        ("q4_0", 64, 2048, 2048, True),
        ("q6_k", 16, 2048, 2048, True),
    ],
)
def test_when_it_pays(kind: str, rows: int, n: int, k: int, pays: bool) -> None:
    assert cublas.pays(kind, rows, n * k) == pays


@needs_gpu
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("rows", "n", "k", "valid"),
    [(128, 192, 256, 0), (128, 192, 256, 1), (128, 192, 256, 100), (128, 192, 256, 128), (64, 1024, 1024, 17)],
)
def test_rows_that_are_not_valid_stay(device: Device, accumulate: bool, rows: int, n: int, k: int, valid: int) -> None:
    rng = np.random.default_rng(valid)
    x, w = (rng.standard_normal((m, k)).astype(np.float32) for m in (rows, n))
    x[valid:] = np.nan
    with Bench(device) as bench:
        given, weight = bench.put(x), bench.put(w.astype(np.float16))
        out, batch = bench.put(np.full((rows, n), 7, np.float32)), bench.batch(rows, valid)
        bench.run(lambda rec: ops.linear(rec, given, weight, out, accumulate=accumulate, batch=batch))
        got = bench.get(out)
        assert cublas.NAME in device.info.features
    want = x[:valid].astype(np.float64) @ w.astype(np.float16).astype(np.float64).T + 7 * accumulate
    assert np.abs(got[:valid] - want).max(initial=0) < ROUNDED * 4 * k**0.5
    assert (got[valid:] == 7).all()
