"""Products of a single row by subgroups that have slices of it in registers: which dispatches they suit."""

from __future__ import annotations

from wasmetal.kernels.catalog import CATALOG, SLICE, Kernel

SUBGROUP = 32
"""Threads of a subgroup, as the kernels have it (``slices.slang``)."""
_COLUMNS = 256
"""Of a weight: rows of so many, in any of the formats, are a whole number of 16 bytes."""
_UNITS = 4
"""Of the offset of a quantized weight, in 16 bytes."""
LEAST = {True: 1 << 22, False: 1 << 20}
"""Weights up to which the variant is no faster on an H200, by whether it quantizes the row."""

_VARIANTS = {
    kernel: CATALOG[f"sliced_{kernel.name}"] for kernel in CATALOG.values() if f"sliced_{kernel.name}" in CATALOG
}

SLICED_KERNELS = {variant: kernel for kernel, variant in _VARIANTS.items()}
"""The variants, and the kernel that each takes the place of."""


def in_integers(variant: Kernel) -> bool:
    """Whether a variant quantizes the row, as its weights are."""
    return "integer_dot" in variant.features


def sliced(kernel: Kernel, params: bytes, any_size: bool = False) -> Kernel | None:
    """The variant that computes a dispatch by slices; None if there is none, or it does not suit the sizes.

    ``any_size``: also if there are few weights.
    """
    found = _VARIANTS.get(kernel)
    if found is None:
        return None
    p = vars(kernel.unpack(params))
    weights = [buffer.name for buffer in kernel.buffers if buffer.name in ("weight", "gate", "up")]
    integers = in_integers(found)
    aligned = not integers or all(p[f"{name}_offset"] % _UNITS == 0 for name in weights)
    few = len(weights) * p["n"] * p["k"] <= LEAST[integers] and not any_size
    fits = p["k"] % _COLUMNS == 0 and p["k"] <= found.size // SUBGROUP * SLICE
    return found if aligned and fits and not few else None
