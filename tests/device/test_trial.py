"""Trying a device's GEMMs against the NumPy kernels: what is right passes, and what is not is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from wasmetal.device import Device
from wasmetal.device.backend import Range
from wasmetal.device.cpu.device import CpuBackend
from wasmetal.device.gemm_trials import gemm, matmul
from wasmetal.device.opened import OpenDevice
from wasmetal.device.trial import Trial, find_problem
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel
from wasmetal.kernels.dtypes import FLOATS, WEIGHTS

SHAPE = 9, 13, 64


def trials() -> list[Trial]:
    floats = [dtype.suffix for dtype in FLOATS]
    return [
        *(gemm(dtype.suffix, *SHAPE) for dtype in WEIGHTS),
        *(gemm("f32", *SHAPE, gap=16, accumulate=accumulate) for accumulate in (False, True)),
        *(
            matmul(kind, result, *SHAPE, gap=16, transpose_a=a, transpose_b=b)
            for kind in floats
            for result in floats
            for a in (False, True)
            for b in (False, True)
        ),
    ]


@pytest.mark.parametrize("name", ["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def test_devices_that_are_right(name: str, request: pytest.FixtureRequest) -> None:
    device: Device = request.getfixturevalue(name)
    assert find_problem(device, trials()) is None


class Faulty(CpuBackend):
    """The CPU device, with a fault in one of its kernels."""

    def __init__(self, name: str, fault: Callable[[Any, list[Any]], object]) -> None:
        super().__init__(None)
        self.fault = name, fault

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[Any]]) -> Callable[[], object]:
        right = super().resolve(kernel, params, ranges)
        name, fault = self.fault
        if kernel.name != name:
            return right
        arrays = [bound.allocation.view()[bound.offset :][: bound.nbytes] for bound in ranges]
        return lambda: fault(right, arrays)


def rounded(right: Callable[[], object], arrays: list[np.ndarray]) -> None:
    """Operands of fewer bits."""
    x = arrays[0].view(np.float32)
    x[:] = x.astype(np.float16)
    right()


def beyond(right: Callable[[], object], arrays: list[np.ndarray]) -> None:
    """A byte more than asked for."""
    right()
    arrays[2][0] = 0


def nan(right: Callable[[], object], arrays: list[np.ndarray]) -> None:
    """No number among the results."""
    right()
    arrays[2][20:24] = 0xFF


def short(right: Callable[[], object], arrays: list[np.ndarray]) -> None:
    """Nothing written."""


def broken(right: Callable[[], object], arrays: list[np.ndarray]) -> None:
    raise DeviceError("the device is on fire")


@pytest.mark.parametrize("name", ["gemm_f32", "matmul_f32_f32"])
@pytest.mark.parametrize("fault", [rounded, beyond, nan, short])
def test_one_that_is_wrong(name: str, fault: Callable[[Any, list[Any]], object]) -> None:
    gapped = [gemm("f32", *SHAPE, gap=16), matmul("f32", "f32", *SHAPE, gap=16)]
    with OpenDevice(Faulty(name, fault)) as device:
        assert find_problem(device, gapped) == f"wrong results for {name}"


def test_one_that_fails() -> None:
    with OpenDevice(Faulty("gemm_q8_0", broken)) as device:
        assert find_problem(device, trials()) == "the device is on fire"
