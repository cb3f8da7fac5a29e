"""GEMMs and attention on matrix units, with GEMMs of few rows that other GPUs do not have; single rows by slices."""

from __future__ import annotations

from wasmetal.device.gemm import variant
from wasmetal.device.matrix_attention import MATRIX_ATTENTION
from wasmetal.device.matrix_units import MatrixUnits
from wasmetal.device.sliced import SLICED_KERNELS, sliced
from wasmetal.device.sliced_trials import sliced_rows
from wasmetal.device.trial import Trial
from wasmetal.kernels.catalog import FEW_ROWS, Kernel

_TILE = 32
"""Rows, and columns of the output, that a subgroup computes (``few_rows.slang``)."""
_GROUPS = 264
"""Up to so many groups, each computes 32 columns: two for each of 132 multiprocessors. Beyond, groups of 128 columns
read the activations a quarter as often."""


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
        if p.rows > FEW_ROWS:
            return found
        narrow = -(-p.rows // _TILE) * -(-p.n // _TILE) <= _GROUPS
        return variant(kernel, "few1" if narrow else "few4")

    def trials(self, kernel: Kernel) -> list[Trial]:
        """What a variant must compute before it is used."""
        return sliced_rows(kernel) if kernel in SLICED_KERNELS else super().trials(kernel)
