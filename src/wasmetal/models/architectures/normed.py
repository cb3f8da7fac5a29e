"""RMS norm and the products that read it: in one kernel for a single row on a device that it suits, else one after
another."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

from wasmetal.models.weights import Weight
from wasmetal.ops import Recorder, Tensor, norm_gated, norm_linear, rms_norm
from wasmetal.ops.linear import GEMV_COLUMNS


@dataclass(frozen=True, slots=True)
class Normed:
    """Rows to be normed, if there is a norm, before something reads them."""

    rec: Recorder
    x: Tensor
    """f32 [T, K]."""
    norm: Tensor | None
    """f32 [K]."""
    eps: float
    scratch: Tensor
    """f32 [T, K], for the rows after the norm; may be x."""
    batch: Tensor | None
    """Batch metadata, if rows may not be valid."""

    def rows(self) -> Tensor:
        """Record the norm. Returns what it writes, or x if there is none."""
        if self.norm is None:
            return self.x
        rms_norm(self.rec, self.x, self.norm, self.scratch, self.eps, batch=self.batch)
        return self.scratch

    def product(self, weight: Weight, out: Tensor, bias: Weight | None = None) -> None:
        """Record out = n weightᵀ + bias, where n is the normed rows; out f32 [T, N]."""
        if self.norm is None or not self._fuses:
            weight(self.rec, self.rows(), out, batch=self.batch)
            if bias:
                bias.add_to(self.rec, out)
            return
        bounds = list(pairwise(accumulate((part.shape[0] for part in weight.parts), initial=0)))
        biases = [bias.rows(*each) if bias else None for each in bounds]
        fits = None not in biases
        for part, each, added in zip(weight.parts, bounds, biases, strict=True):
            norm_linear(self.rec, self.x, self.norm, part, out.columns(*each), self.eps, bias=added if fits else None)
        if bias and not fits:
            bias.add_to(self.rec, out)

    def gated(self, weight: Weight, out: Tensor, activation: str) -> bool:
        """Record out = activation(n gateᵀ) * (n upᵀ), gate and up being the halves of the weight; out f32 [1, N].

        Returns whether it was: only if one kernel does all of it.
        """
        if self.norm is None or not self._fuses:
            return False
        n = out.shape[1]
        gate, up = weight.rows(0, n), weight.rows(n, 2 * n)
        if gate is None or up is None or gate.dtype is not up.dtype:
            return False
        norm_gated(self.rec, self.x, self.norm, gate, up, out, self.eps, activation=activation)
        return True

    @property
    def _fuses(self) -> bool:
        rows, columns = self.x.shape
        return self.rec.info.fuses and rows == 1 and columns % GEMV_COLUMNS == 0
