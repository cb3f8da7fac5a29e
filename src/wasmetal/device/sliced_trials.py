"""Trials of the kernels that multiply a single row by slices, on small random matrices."""

from __future__ import annotations

from itertools import product

from wasmetal.device.base import Bytes
from wasmetal.device.gemm_trials import poisoned_matrix, random_matrix
from wasmetal.device.sliced import SLICED_KERNELS, in_integers
from wasmetal.device.trial import QUANTIZED, Trial
from wasmetal.kernels.catalog import ACTIVATIONS, NO_BIAS, SLICE, Kernel
from wasmetal.kernels.dtypes import DType

_GAP = 16
"""Bytes before each operand."""
_EPS = 1e-5
_SIZES = (1601, 256), (71, 512), (19, SLICE + 256), (9, 3 * SLICE)
"""Rows and columns of a weight: more rows than a group keeps the sums of, and part of a slice; fewer rows; a slice and
a part; as many slices as leave some subgroups over."""
_GROUPS = 3
"""Fewer than the rows, so that each group goes on to others."""


def sliced_rows(variant: Kernel) -> list[Trial]:
    """Trials of the kernel that a variant takes the place of."""
    return [sliced_row(variant, n, k, bool(more)) for (n, k), more in product(_SIZES, (False, True))]


def sliced_row(variant: Kernel, n: int, k: int, more: bool, groups: int = _GROUPS) -> Trial:
    """A product with weights [n, k]; with ``more``, added to what is there or to a bias, or activated by GELU."""
    kernel = SLICED_KERNELS[variant]
    kind = kernel.name[len(kernel.source) + 1 :]
    fields: dict[str, float] = {"n": n, "k": k, "groups": groups}
    if kernel.source == "gemv":
        fields |= {"accumulate": int(more)}
    else:
        fields |= {"eps": _EPS}
    if kernel.source == "gated_gemv":
        fields |= {"activation": ACTIVATIONS.index("gelu" if more else "silu")}
    rows = {"x": k, "norm": k, "bias": n}
    arrays = []
    for buffer in kernel.buffers:
        fields[f"{buffer.name}_offset"] = _GAP // buffer.element
        if buffer.name in rows:
            arrays.append(random_matrix("f32", 1, rows[buffer.name], _GAP))
        elif buffer.name != "out":
            arrays.append(_weights(kind, n, k, positive=kernel.source == "gated_gemv"))
        elif kernel.source == "gemv" and more:
            arrays.append(random_matrix("f32", 1, n, _GAP))
        else:
            arrays.append(poisoned_matrix("f32", 1, n, _GAP))
    if kernel.source == "norm_gemv" and not more:
        fields["bias_offset"] = NO_BIAS
    return Trial(kernel, arrays, "f32", groups, fields, QUANTIZED if in_integers(variant) else None)


def _weights(kind: str, n: int, k: int, positive: bool) -> Bytes:
    """Random weights; none negative if ``positive``, since activations of large negative numbers are 0."""
    weights = random_matrix(kind, n, k, 0, start=_GAP)
    if positive and kind == "q4_0":
        row = DType.Q4_0.row_bytes(k)
        weights[_GAP : _GAP + n * row].reshape(-1, DType.Q4_0.block[1])[:, 2:] |= 0x88
    return weights
