"""Single rows multiplied by slices, against NumPy; and which dispatches are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import HAS_CUDA
from tests.device.test_matrix_units import backend as backend  # noqa: PLC0414 (a fixture)
from wasmetal.device import Device, open_device
from wasmetal.device.backend import AnyBackend
from wasmetal.device.cuda.matrices import MatrixInstructions
from wasmetal.device.sliced import SLICED_KERNELS
from wasmetal.device.sliced_trials import sliced_row, sliced_rows
from wasmetal.device.trial import find_problem
from wasmetal.kernels.catalog import CATALOG, Kernel

VARIANTS = [pytest.param(variant, id=variant.name) for variant in SLICED_KERNELS]


def chosen(backend: AnyBackend, name: str, **fields: int) -> str:
    kernel = CATALOG[name]
    given = dict.fromkeys((name for name, _ in kernel.params), 0) | {"n": 8192, "k": 2048} | fields
    return MatrixInstructions(None).choose(backend, kernel, kernel.pack(**given)).name


@pytest.mark.parametrize("name", ["gemv_q8_0", "norm_gemv_q4_0", "gated_gemv_q4_0", "gemv_f16", "gated_gemv_bf16"])
def test_which_dispatches(backend: AnyBackend, name: str) -> None:
    assert chosen(backend, name) == f"sliced_{name}"
    assert chosen(backend, name, n=100) == name  # too few weights
    assert chosen(backend, name, k=2048 + 32) == name
    if "q" in name:
        assert chosen(backend, name, **{"gate_offset" if "gated" in name else "weight_offset": 2}) == name
    backend.precision = "exact"
    assert chosen(backend, name) == name


def test_how_long_a_row_may_be(backend: AnyBackend) -> None:
    assert chosen(backend, "norm_gemv_q8_0", k=32768) == "sliced_norm_gemv_q8_0"
    assert chosen(backend, "norm_gemv_q8_0", k=32768 + 256) == "norm_gemv_q8_0"
    assert chosen(backend, "gemv_f16", k=16384) == "sliced_gemv_f16"
    assert chosen(backend, "gemv_f16", k=16384 + 256) == "gemv_f16"


@pytest.mark.parametrize("name", ["gemv_f32", "gemv_q4_k", "expert_gemv_q8_0"])
def test_other_kernels(backend: AnyBackend, name: str) -> None:
    kernel = CATALOG[name]
    packed = kernel.pack(**dict.fromkeys((field for field, _ in kernel.params), 0) | {"n": 8192, "k": 2048})
    assert MatrixInstructions(None).choose(backend, kernel, packed) is kernel


@pytest.mark.parametrize("variant", VARIANTS)
def test_trials_agree_with_numpy(variant: Kernel) -> None:
    """What the trials expect is what a device that rounds nothing computes."""
    with open_device("reference") as device:
        assert find_problem(device, sliced_rows(variant)) is None


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with open_device("cuda", "standard") as device:
        yield device


@pytest.mark.skipif(not HAS_CUDA, reason="no GPU of NVIDIA's")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("n", "k"), [(16387, 512), (3072, 3072), (2050, 8192), (600, 14336)])
def test_products(device: Device, variant: Kernel, n: int, k: int) -> None:
    """More rows than groups take at once, and rows of several slices."""
    trials = [sliced_row(variant, n, k, more, groups) for more in (False, True) for groups in (5, 100, 300)]
    assert find_problem(device, trials) is None
    assert not [said for said in device.info.features if said.startswith("no sliced_")]
