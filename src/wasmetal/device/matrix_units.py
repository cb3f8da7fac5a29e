"""GEMMs on a GPU's matrix units, with cooperative matrices: which ones they can compute, and a trial of them."""

from __future__ import annotations

from wasmetal.device.backend import AnyBackend
from wasmetal.device.gemm import variant
from wasmetal.device.gemm_trials import rounded_gemms
from wasmetal.device.opened import OpenDevice
from wasmetal.device.trial import find_problem
from wasmetal.kernels.catalog import COOPMAT_TILES, Kernel

FEATURE = "cooperative matrices"
"""Their name among the features of a device."""
SUBGROUP = 32
"""Threads of a subgroup, as the kernels have it (``fragments.slang``)."""
_DEPTH = 32
"""Elements of a tile along k."""
_MANY = 256
"""Groups that occupy a large GPU; below, smaller tiles make more of them. Of an H200, which has 132 multiprocessors."""
_VECTOR = 4
"""Floats of the least unit that the kernels load and store."""


def with_matrices(kernel: Kernel, params: bytes) -> Kernel:
    """The variant of a GEMM with cooperative matrices, if there is one that can compute it; else the kernel itself."""
    small, large = (variant(kernel, f"coopmat{tile}") for tile in COOPMAT_TILES)
    if small is kernel:
        return kernel
    p = kernel.unpack(params)
    aligned = (p.x_offset | p.x_stride | p.weight_offset | p.out_offset | p.out_stride) % _VECTOR == 0
    if not aligned or p.k % _DEPTH:
        return kernel
    groups = -(-p.rows // COOPMAT_TILES[1]) * -(-p.n // COOPMAT_TILES[1])
    return small if groups < _MANY else large


def try_matrices(backend: AnyBackend) -> str | None:
    """Why a backend that uses cooperative matrices cannot be used; None if it computes what the NumPy kernels compute."""
    backend.precision = "standard"
    return find_problem(OpenDevice(backend), rounded_gemms())
