"""The GEMMs of few rows on CUDA's matrix instructions, against NumPy; and which GEMMs they take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import HAS_CUDA
from tests.device.test_matrix_units import backend as backend  # noqa: PLC0414 (a fixture)
from tests.device.test_matrix_units import chosen
from wasmetal.device import Device, open_device
from wasmetal.device.backend import AnyBackend
from wasmetal.device.cuda.matrices import MatrixInstructions
from wasmetal.device.gemm_trials import gemm
from wasmetal.device.trial import ROUNDED, find_problem
from wasmetal.kernels.dtypes import WEIGHTS, DType


@pytest.mark.parametrize(
    ("rows", "n", "kernel"),
    [
        (2, 2048, "gemm_few1_f16"),
        (64, 2048, "gemm_few1_f16"),
        (64, 128_256, "gemm_few4_f16"),
        (65, 2048, "gemm_coopmat64_f16"),
    ],
)
def test_which_gemms(backend: AnyBackend, rows: int, n: int, kernel: str) -> None:
    assert chosen(backend, "gemm_f16", MatrixInstructions(None), rows=rows, n=n, out_stride=n) == kernel


def test_unaligned_operands(backend: AnyBackend) -> None:
    assert chosen(backend, "gemm_f16", MatrixInstructions(None), rows=8, k=2040) == "gemm_f16"


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with open_device("cuda", "standard") as device:
        yield device


@pytest.mark.skipif(not HAS_CUDA, reason="no GPU of NVIDIA's")
@pytest.mark.parametrize("kind", [dtype.suffix for dtype in WEIGHTS if dtype is not DType.F32])
@pytest.mark.parametrize(("rows", "n", "k"), [(2, 71, 256), (17, 3072, 2048), (33, 8200, 768), (64, 96, 8192)])
def test_products(device: Device, kind: str, rows: int, n: int, k: int) -> None:
    """Rows and columns past whole tiles, steps that not all subgroups take, and long sums."""
    assert find_problem(device, [gemm(kind, rows, n, k, accumulate=add, tolerance=ROUNDED) for add in (0, 1)]) is None
