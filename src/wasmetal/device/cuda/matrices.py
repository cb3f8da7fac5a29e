"""GEMMs and attention on matrix units, with GEMMs of few rows that other GPUs do not have; single rows by slices."""

from __future__ import annotations

from wasmetal.device.gemm import variant
from wasmetal.device.matrix_attention import MATRIX_ATTENTION
from wasmetal.device.matrix_units import MatrixUnits
from wasmetal.device.sliced import SLICED_KERNELS, sliced
from wasmetal.device.sliced_trials import sliced_rows
from wasmetal.device.trial import Trial
from wasmetal.kernels.catalog import FEW_ROWS, Kernel

_WIDE = 8192
"""Columns of the output from which on there are enough groups if each computes 128 columns: here, of 132
multiprocessors. Groups of 32 columns read the activations four times as often."""


class MatrixInstructions(MatrixUnits):
    """Chooses kernels with CUDA's matrix instructions, or by slices, unless the precision is ``exact``."""

    def suited(self, kernel: Kernel, params: bytes) -> Kernel | None:
        """The variant of a GEMM, a GEMV or attention that suits its sizes; None if there is none."""
        found = super().suited(kernel, params)
        if found is None:
            return sliced(kernel, params, any_size=self._only is not None)
        if found in MATRIX_ATTENTION:
            return found
        p = kernel.unpack(params)
        return found if p.rows > FEW_ROWS else variant(kernel, "few4" if p.n >= _WIDE else "few1")

    def trials(self, kernel: Kernel) -> list[Trial]:
        """What a variant must compute before it is used."""
        return sliced_rows(kernel) if kernel in SLICED_KERNELS else super().trials(kernel)
