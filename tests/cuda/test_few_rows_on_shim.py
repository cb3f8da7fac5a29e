"""CUDA's GEMMs of few rows, compiled as C++ and run on the CPU, against float64 NumPy: see
test_matrix_attention_on_shim.py."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cuda.shim.library import compiled, needs_ziglang
from tests.ops.test_linear import check_linear
from wasmetal.device import Device
from wasmetal.device.base import Bytes
from wasmetal.kernels.catalog import CATALOG
from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference import KERNELS

pytestmark = needs_ziglang

ROUNDED = 1e-3
"""Of the sum of the products' magnitudes: both factors are rounded to float16."""
TILE = 64
"""Rows and columns of a GEMM's tile (ops/linear.py)."""


def launch(across: int, name: str, p: SimpleNamespace, *arrays: Bytes) -> Any:
    kernel = CATALOG[name.replace("gemm_", f"gemm_few{across}_")]
    tiles = -(-p.rows // TILE) * -(-p.n // TILE)
    return partial(compiled(kernel).run, tiles * kernel.spread, p, *arrays)


@pytest.mark.parametrize(
    ("dtype", "across"), [(DType.Q4_0, 1), (DType.Q8_0, 4), (DType.F16, 4), (DType.Q5_0, 1)], ids=str
)
def test_products(reference: Device, monkeypatch: pytest.MonkeyPatch, dtype: DType, across: int) -> None:
    """Rows that are not valid, rows and columns past whole tiles, and steps along k that not all subgroups take."""
    name = f"gemm_{dtype.suffix}"
    monkeypatch.setitem(KERNELS, name, partial(launch, across, name))
    for rows, n, k, more in (
        (2, 33, 32, {}),
        (17, 71, 352, {"accumulate": True}),
        (40, 130, 288, {"live": 35, "gap": 32}),
        (64, 40, 96, {"live": 9}),
    ):
        check_linear(reference, dtype, rows, n, k, tolerance=ROUNDED, **more)
