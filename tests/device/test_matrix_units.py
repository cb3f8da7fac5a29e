"""Which GEMMs go to a GPU's matrix units. What the kernels compute is compared by trials, on GPUs that have some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wasmetal.device import open_device
from wasmetal.device.backend import AnyBackend
from wasmetal.device.cpu.reference import ReferenceBackend
from wasmetal.device.matrix_units import MatrixTrials, MatrixUnits
from wasmetal.device.trial_results import TrialResults
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, NO_BATCH, Kernel

SIZES = {"rows": 512, "n": 8192, "k": 2048, "x_stride": 2048, "out_stride": 8192}


@pytest.fixture
def backend() -> Any:
    """A backend that stands for a GPU's: the choice of a kernel needs no GPU."""
    with open_device("reference", "standard") as device:
        yield device.backend


def params(kernel: Kernel, **fields: int) -> bytes:
    given = dict.fromkeys((name for name, _ in kernel.params), 0) | {"batch_offset": NO_BATCH} | SIZES | fields
    return kernel.pack(**given)


def chosen(backend: AnyBackend, name: str, units: MatrixUnits | None = None, **fields: int) -> str:
    kernel = CATALOG[name]
    return (units or MatrixUnits(None)).choose(backend, kernel, params(kernel, **fields)).name


def test_tiles_suit_the_size(backend: AnyBackend) -> None:
    assert chosen(backend, "gemm_f16") == "gemm_coopmat128_f16"
    assert chosen(backend, "gemm_f16", rows=64) == "gemm_coopmat64_f16"
    assert chosen(backend, "gemm_q4_k", n=1024) == "gemm_coopmat64_q4_k"


@pytest.mark.parametrize("name", ["gemm_f32", "gemv_f16", "matmul_f16_f32", "expert_gemm_f16", "add"])
def test_kernels_without_a_variant(backend: AnyBackend, name: str) -> None:
    kernel = CATALOG[name]
    packed = kernel.pack(**dict.fromkeys((field for field, _ in kernel.params), 0))
    assert MatrixUnits(None).choose(backend, kernel, packed) is kernel


@pytest.mark.parametrize(
    "fields",
    [{"k": 2040}, {"x_offset": 1}, {"x_stride": 2049}, {"weight_offset": 2}, {"out_offset": 3}, {"out_stride": 8193}],
    ids=str,
)
def test_what_is_not_aligned_stays(backend: AnyBackend, fields: dict[str, int]) -> None:
    assert chosen(backend, "gemm_f16", **fields) == "gemm_f16"


def test_exact_rounds_nothing(backend: AnyBackend) -> None:
    backend.precision = "exact"
    assert chosen(backend, "gemm_f16") == "gemm_f16"
    backend.precision = "fast"
    assert chosen(backend, "gemm_f16") == "gemm_coopmat128_f16"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialResults:
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    return TrialResults("gpu.trials")


def test_a_kernel_is_tried_once(backend: AnyBackend, results: TrialResults) -> None:
    tried = []

    def open_with(units: MatrixUnits) -> AnyBackend:
        other = open_device("reference").backend
        tried.append(chosen(replace_precision(other), "gemm_f16", units))
        return other

    units = MatrixUnits(MatrixTrials(results, open_with))
    for _ in range(2):
        assert chosen(backend, "gemm_f16", units) == "gemm_coopmat128_f16"
    assert tried == ["gemm_coopmat128_f16"]  # the trial's device uses that kernel, whatever the size
    again = MatrixUnits(MatrixTrials(TrialResults("gpu.trials"), open_with))
    assert chosen(backend, "gemm_f16", again) == "gemm_coopmat128_f16"
    assert len(tried) == 1  # the next process knows


def replace_precision(backend: AnyBackend) -> AnyBackend:
    backend.precision = "standard"
    return backend


def test_a_kernel_that_fails_is_not_used(backend: AnyBackend, results: TrialResults) -> None:
    """The device goes on with the plain kernel, and says so, once."""

    def broken(units: MatrixUnits) -> AnyBackend:
        class Broken(ReferenceBackend):
            def resolve(self, kernel: Kernel, *args: Any) -> Any:
                raise DeviceError("it does not compile")

        return Broken()

    units = MatrixUnits(MatrixTrials(results, broken))
    backend.info = replace(backend.info, features=("something",))
    for _ in range(2):
        assert chosen(backend, "gemm_f16", units) == "gemm_f16"
    assert backend.info.features == (
        "something",
        "no gemm_coopmat128_f16 (it does not compile)",
    )
