"""CUDA's kernels of attention on matrix units, compiled as C++ and run on the CPU, against float64 NumPy.

What this shows: their arithmetic, their indexing, which thread has which element of a matrix, and that threads wait for
each other, in two orders. What it does not: that a GPU runs them; see tests/device/test_matrix_attention.py.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuda.shim.library import compiled, needs_ziglang
from tests.device.test_matrix_attention import check
from tests.ops.prefill_cases import SINKS, check_any_batch, check_mixed_sequences, check_prompt, check_windows
from wasmetal.device import Device
from wasmetal.device.base import Bytes
from wasmetal.kernels.catalog import CATALOG, MATRIX_HEADS
from wasmetal.kernels.dtypes import KV, DType
from wasmetal.kernels.reference import KERNELS

pytestmark = needs_ziglang


@pytest.fixture
def device(reference: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The reference device, with CUDA's kernels of attention in place of NumPy's."""
    for dtype in KV:
        name = f"prefill_attention_{dtype.suffix}"
        monkeypatch.setitem(KERNELS, name, partial(launch, name))
    return reference


def launch(name: str, p: SimpleNamespace, *arrays: Bytes) -> Any:
    head = next(head for head in MATRIX_HEADS if p.head_dim <= head)
    return partial(compiled(CATALOG[f"matrix{head}_{name}"]).run, p.rows * p.kv_heads, p, *arrays)


@pytest.mark.parametrize(
    "prompt",
    [  # dtype, rows, heads, kv_heads, head_dim, page_size, table, pages, position
        (DType.F16, 40, 8, 2, 64, 16, [7, 2, 11, 0, 5, 9, 3, 1, 8, 4, 6, 10], 12, 120),  # two tiles and a part
        (DType.F16, 21, 9, 3, 56, 16, [3, 0, 2, 1], 4, 37),  # three heads of 21 rows: a query is left over
        (DType.F16, 19, 8, 2, 128, 32, range(9), 9, 70),
        (DType.F16, 5, 4, 2, 256, 32, range(9), 9, 70),
        (DType.F32, 70, 2, 1, 8, 1, range(100), 100, 0),
        (DType.Q8_0, 33, 2, 2, 64, 16, [3, 0, 2, 1], 4, 20),
    ],
    ids=str,
)
def test_prompts(device: Device, prompt: tuple[Any, ...]) -> None:
    check_prompt(check, device, *prompt)


@SINKS
@pytest.mark.parametrize(
    ("rows", "valid", "position", "length", "window"),
    [(40, 33, 100, 140, 70), (9, 9, 10, 12, 4), (33, 0, 0, 33, None)],
)
def test_windows_and_sinks(
    device: Device,
    rows: int,
    valid: int,
    position: int,
    length: int,
    window: int | None,
    sinks: list[float] | None,
) -> None:
    check_windows(check, device, DType.F16, 24, rows, valid, position, length, window, sinks)


@pytest.mark.parametrize("heads", [2, 6])
def test_mixed_sequences(device: Device, heads: int) -> None:
    check_mixed_sequences(check, device, DType.F16, 24, heads)


@given(data=st.data())
def test_any_batch(device: Device, data: st.DataObject) -> None:
    check_any_batch(check, device, data, [DType.F16], range(8, 72, 8), longest=12)
