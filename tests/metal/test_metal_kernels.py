"""Metal, layers 2 and 3: every kernel through the Metal device, emulated or a Mac's, against the CPU device's."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.metal.devices import EMULATED
from tests.metal.test_kernels_on_shim import CASES, CLOSE, ROUNDED, Case, check_rounded, results
from wasmetal.device import Device
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.kernels.catalog import CATALOG

LENIENCE = 1 if EMULATED else 16
"""A GPU's exponentials are accurate to a few ulp, and it may fuse a multiplication and an addition."""
ROUNDED_CLOSE = CLOSE if EMULATED else 5e-4
"""Where a GPU fuses the arithmetic of a quantized weight, it may round it to the neighbouring float16."""


@functools.cache
def check(metal: Device, case: Case) -> None:
    with CpuDevice() as cpu:
        wanted = results(cpu, case)
    backend = metal.backend
    able, backend.simdgroups = backend.simdgroups, backend.simdgroups and case.simdgroups
    info, backend.info = backend.info, replace(backend.info, shuffles=case.shuffles)
    try:
        found = results(metal, case)
    finally:
        backend.simdgroups, backend.info = able, info
    for got, want in zip(found, wanted, strict=True):
        error = np.abs(got.astype(np.float64) - want)
        bound = LENIENCE * case.tolerance * np.abs(want.astype(np.float64)).max()
        assert (error <= bound).all(), f"off by {error.max()}; {bound} is allowed"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_on_metal(metal: Device, case: Case) -> None:
    check(metal, case)


@functools.cache
def check_rounded_on(metal: Device, *case: Any) -> None:
    backend = metal.backend
    assert backend.simdgroups or not EMULATED
    if backend.simdgroups:
        backend.precision = "standard"
        try:
            check_rounded(metal, ROUNDED_CLOSE, *case)
        finally:
            backend.precision = "exact"


@pytest.mark.parametrize("case", ROUNDED, ids=lambda case: " ".join(map(str, case)))
def test_operands_of_float16_on_metal(metal: Device, case: tuple[Any, ...]) -> None:
    check_rounded_on(metal, *case)


def test_every_kernel_ran_on_metal(metal: Device) -> None:
    """A kernel of the catalog without a case above fails here."""
    for case in CASES:
        check(metal, case)
    for rounded in ROUNDED:
        check_rounded_on(metal, *rounded)
    simdgroups = metal.backend.simdgroups
    assert simdgroups or not EMULATED
    for_metal = [kernel for kernel in CATALOG.values() if "metal" in kernel.targets]
    wanted = {kernel.name for kernel in for_metal if simdgroups or "simdgroup_matrix" not in kernel.features}
    assert {kernel.name for kernel in metal.backend.pipelines.made} >= wanted
