"""GEMMs left to a library: here NumPy, on the CPU device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ops.tensors import Bench
from wasmetal import ops
from wasmetal.device.backend import Range
from wasmetal.device.cpu.device import CpuBackend
from wasmetal.device.cpu.memory import Pages
from wasmetal.device.gemm import Gemm, Matrix
from wasmetal.device.libraries import base
from wasmetal.device.libraries.base import GemmLibrary, LibraryTrials
from wasmetal.device.opened import OpenDevice
from wasmetal.device.trial_results import TrialResults
from wasmetal.kernels.catalog import Kernel

SIDE = 64
Call = Callable[[], Any]


class NumPyLibrary(GemmLibrary[Pages, Call]):
    """NumPy's matrix product, plus ``error``."""

    name = "NumPy"
    kinds = (("f32", "f32", "f32"),)

    def __init__(self, error: float = 0, trials: LibraryTrials | None = None) -> None:
        super().__init__(trials)
        self.error = error
        self.computed = 0

    def takes(self, gemm: Gemm, ranges: Sequence[Range[Pages]]) -> bool:
        return True

    def make(self, gemm: Gemm, ranges: Sequence[Range[Pages]]) -> Call:
        left, right, result = map(array, gemm.matrices, ranges)

        def compute() -> None:
            self.computed += 1
            result[...] = left @ right + self.error + (result if gemm.accumulate else 0)

        return compute


def array(matrix: Matrix, bound: Range[Pages]) -> np.ndarray:
    stored = np.ndarray(
        (matrix.rows, matrix.columns),
        np.float32,
        bound.allocation.view(),
        bound.offset + matrix.offset,
        (matrix.row_bytes, 4),
    )
    return stored.T if matrix.transposed else stored


class Backend(CpuBackend):
    def __init__(self, library: NumPyLibrary) -> None:
        super().__init__(None)
        self.library = library

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[Pages]]) -> Call:
        return self.library.find(self, kernel, params, ranges) or super().resolve(kernel, params, ranges)


@pytest.fixture
def open_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenDevice]:
    """Opens a device whose library makes a constant error, and is tried first."""
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    monkeypatch.setattr(base, "LEAST", SIDE**3)

    def open_it(error: float = 0) -> OpenDevice:
        trials = LibraryTrials(TrialResults("test.trials"), lambda: OpenDevice(Backend(NumPyLibrary(error))))
        return OpenDevice(Backend(NumPyLibrary(error, trials)))

    return open_it


def matmul(device: OpenDevice, side: int) -> int:
    """How many GEMMs the library computes for a matmul, whose result must be right."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((side, side)).astype(np.float32) for _ in range(2))
    library = device.backend.library
    before = library.computed
    with Bench(device) as bench:
        tensors = bench.put(x), bench.put(y), bench.empty(side, side)
        bench.run(lambda rec: ops.matmul(rec, *tensors))
        assert np.allclose(bench.get(tensors[2]), x @ y, atol=1e-4)
    return library.computed - before


def test_large_gemms_are_the_librarys(open_with: Callable[..., OpenDevice]) -> None:
    with open_with() as device:
        before = device.info.features
        assert matmul(device, SIDE - 4) == 0
        assert device.info.features == before
        assert matmul(device, SIDE) == 1
        assert device.info.features == (*before, "large GEMMs by NumPy (f32 to f32)")


def test_a_wrong_library_is_not_used(open_with: Callable[..., OpenDevice]) -> None:
    with open_with(error=1) as device:
        before = device.info.features
        assert matmul(device, SIDE) == matmul(device, SIDE) == 0
        assert device.info.features == (*before, "no NumPy for f32 to f32 (wrong results for matmul_f32_f32)")


def test_a_passed_trial_is_remembered_and_a_failed_one_repeated(open_with: Callable[..., OpenDevice]) -> None:
    for error, used in ((1, 0), (0, 1)):
        with open_with(error) as device:
            assert matmul(device, SIDE) == used
    with open_with(error=1) as device, pytest.raises(AssertionError):
        matmul(device, SIDE)  # wrong now, but not tried again
