"""Attention on matrix units: which dispatches it takes, its trials, and on GPUs its results against NumPy.

Queries, keys, values and weights are rounded to float16, so the tolerance is not that of other attention: 1e-3 of the
largest value there is to average.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import HAS_CUDA
from tests.device.test_matrix_units import backend as backend  # noqa: PLC0414 (a fixture)
from tests.ops import test_attention
from tests.ops.prefill_cases import SINKS, WINDOWS, check_any_batch, check_mixed_sequences, check_prompt, check_windows
from wasmetal import ops
from wasmetal.device import Device, open_device
from wasmetal.device.attention_trials import attention_of_many_rows
from wasmetal.device.backend import AnyBackend
from wasmetal.device.cuda.matrices import MatrixInstructions
from wasmetal.device.matrix_attention import MATRIX_ATTENTION
from wasmetal.device.matrix_units import HalfSimdgroups, MatrixUnits
from wasmetal.device.trial import ROUNDED, find_problem
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG
from wasmetal.kernels.dtypes import KV, DType

check = partial(test_attention.check_attention, attend=ops.prefill_attention, tolerance=ROUNDED)

VARIANTS = pytest.mark.parametrize("variant", MATRIX_ATTENTION, ids=lambda kernel: kernel.name)


def chosen(units: MatrixUnits, backend: AnyBackend, name: str, **fields: int) -> str:
    kernel = CATALOG[name]
    given: dict[str, Any] = dict.fromkeys((field for field, _ in kernel.params), 0)
    given |= {"rows": 512, "heads": 32, "kv_heads": 8, "head_dim": 64, "q_stride": 3072, "out_stride": 2048} | fields
    return units.choose(backend, kernel, kernel.pack(**given)).name


@pytest.mark.parametrize("units", [MatrixUnits(None), MatrixInstructions(None)], ids=lambda units: type(units).__name__)
@pytest.mark.parametrize("dtype", KV)
def test_which_dispatches(backend: AnyBackend, units: MatrixUnits, dtype: DType) -> None:
    name = f"prefill_attention_{dtype.suffix}"
    for head_dim, head in ((8, 64), (64, 64), (72, 128), (128, 128), (256, 256)):
        assert chosen(units, backend, name, head_dim=head_dim) == f"matrix{head}_{name}"
    for fields in ({"head_dim": 60}, {"q_offset": 2}, {"q_stride": 3074}):
        assert chosen(units, backend, name, **fields) == name
    backend.precision = "exact"
    assert chosen(units, backend, name) == name


def test_pools_that_begin_between_vectors(backend: AnyBackend) -> None:
    """Offsets count four elements; those of float16 are loaded eight at a time."""
    name = "prefill_attention_f16"
    for field in ("k_pages_offset", "v_pages_offset"):
        assert chosen(MatrixUnits(None), backend, name, **{field: 2}) == f"matrix64_{name}"
        assert chosen(MatrixUnits(None), backend, name, **{field: 3}) == name
        assert chosen(MatrixUnits(None), backend, "prefill_attention_f32", **{field: 3}).startswith("matrix64")


def test_metal_has_none(backend: AnyBackend) -> None:
    assert chosen(HalfSimdgroups(None), backend, "prefill_attention_f16") == "prefill_attention_f16"


@VARIANTS
def test_trials_are_of_what_attention_computes(cpu: Device, variant: Any) -> None:
    """A device that computes as it should passes them."""
    assert find_problem(cpu, attention_of_many_rows(variant)) is None


@pytest.fixture(scope="module", params=["vulkan", *(["cuda"] if HAS_CUDA else [])])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """GPUs with matrix units that their kernels of attention use."""
    try:
        device = open_device(request.param, "standard")
    except DeviceError as error:
        pytest.skip(str(error))
    with device:
        if MatrixUnits.name not in device.info.features:
            pytest.skip(f"{device.info.name} has no matrix units")
        yield device


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize(
    "prompt",
    [  # rows, heads, kv_heads, head_dim, page_size, table, pages, position
        (1, 1, 1, 8, 1, [0], 1, 0),
        (70, 32, 8, 64, 16, range(12), 12, 90),
        (33, 2, 2, 64, 16, [3, 0, 2, 1], 4, 20),  # one head of each row
        (21, 9, 3, 72, 16, [3, 0, 2, 1], 4, 37),  # three heads of 21 rows: a query is left over
        (37, 16, 4, 128, 32, range(9), 9, 200),
        (9, 8, 2, 256, 32, range(9), 9, 270),
        (5, 14, 2, 80, 64, [1, 0, 2], 3, 150),
        (3, 140, 2, 16, 5, [4, 2, 0, 3], 5, 3),  # more heads than a group has queries
        (131, 2, 1, 8, 32, range(9), 9, 0),
    ],
    ids=str,
)
def test_prompts(device: Device, dtype: DType, prompt: tuple[Any, ...]) -> None:
    check_prompt(check, device, dtype, *prompt)
    assert uses_matrix_units(device)


@pytest.mark.parametrize("dtype", KV)
@SINKS
@WINDOWS
def test_windows_and_sinks(
    device: Device,
    dtype: DType,
    rows: int,
    valid: int,
    position: int,
    length: int,
    window: int | None,
    sinks: list[float] | None,
) -> None:
    check_windows(check, device, dtype, 24, rows, valid, position, length, window, sinks)


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize("heads", [2, 6])
def test_mixed_sequences(device: Device, dtype: DType, heads: int) -> None:
    check_mixed_sequences(check, device, dtype, 24, heads)


@given(data=st.data())
def test_any_batch(device: Device, data: st.DataObject) -> None:
    check_any_batch(check, device, data, KV, range(8, 264, 8), longest=40)


def uses_matrix_units(device: Device) -> bool:
    """Whether no kernel of attention on matrix units has failed its trial."""
    return not any("prefill_attention" in feature for feature in device.info.features)
