"""GEMMs on a GPU's matrix units, with kernels for few rows besides those that other GPUs have."""

from __future__ import annotations

from wasmetal.device.gemm import variant
from wasmetal.device.matrix_units import MatrixUnits
from wasmetal.kernels.catalog import FEW_ROWS, Kernel

_WIDE = 8192
"""Columns of the output from which on there are enough groups if each computes 128 columns: here, of 132
multiprocessors. Groups of 32 columns read the activations four times as often."""


class MatrixInstructions(MatrixUnits):
    """Chooses kernels with CUDA's matrix instructions, unless the precision is ``exact``."""

    def suited(self, kernel: Kernel, params: bytes) -> Kernel | None:
        """The variant of a GEMM that suits its sizes; None if there is none, or the kernel is no GEMM."""
        found = super().suited(kernel, params)
        if found is None:
            return None
        p = kernel.unpack(params)
        return found if p.rows > FEW_ROWS else variant(kernel, "few4" if p.n >= _WIDE else "few1")
