"""Products of a single row with quantized weights in integers: which dispatches they suit."""

from __future__ import annotations

from wasmetal.kernels.catalog import CATALOG, INTEGER_SLICE, Kernel

SUBGROUP = 32
"""Threads of a subgroup, as the kernels have it (``integers.slang``)."""
_COLUMNS = 256
"""Of a weight: rows of so many, in any of the formats, are a whole number of 16 bytes."""
_UNITS = 4
"""Of the offset of a weight, in 16 bytes."""
LEAST = 1 << 22
"""Weights up to which quantizing the row takes longer than it saves, on an H200."""

_VARIANTS = {
    kernel: CATALOG[f"integer_{kernel.name}"] for kernel in CATALOG.values() if f"integer_{kernel.name}" in CATALOG
}

INTEGER_KERNELS = {variant: kernel for kernel, variant in _VARIANTS.items()}
"""The variants, and the kernel that each takes the place of."""


def in_integers(kernel: Kernel, params: bytes, least: int = LEAST) -> Kernel | None:
    """The variant that computes a dispatch in integers; None if there is none, or it does not suit the sizes.

    Nor does it suit ``least`` weights, or fewer.
    """
    found = _VARIANTS.get(kernel)
    if found is None:
        return None
    p = vars(kernel.unpack(params))
    weights = [buffer.name for buffer in kernel.buffers if buffer.name in ("weight", "gate", "up")]
    aligned = all(p[f"{name}_offset"] % _UNITS == 0 for name in weights) and p["k"] % _COLUMNS == 0
    few = len(weights) * p["n"] * p["k"] <= least
    return found if aligned and not few and p["k"] <= found.size // SUBGROUP * INTEGER_SLICE else None
