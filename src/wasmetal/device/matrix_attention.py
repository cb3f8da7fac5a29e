"""Attention of many rows on matrix units: which dispatches it suits."""

from __future__ import annotations

from wasmetal.kernels.catalog import CATALOG, MATRIX_HEADS, Kernel

_EIGHT = 8
"""Elements of a head that the kernels load at once."""
_WORDS = 4
"""Words of a vector of queries, at whose beginnings heads begin."""

_VARIANTS = {
    kernel: {head: CATALOG[f"matrix{head}_{kernel.name}"] for head in MATRIX_HEADS}
    for kernel in CATALOG.values()
    if f"matrix{min(MATRIX_HEADS)}_{kernel.name}" in CATALOG
}

MATRIX_ATTENTION = {
    variant: (kernel, head) for kernel, variants in _VARIANTS.items() for head, variant in variants.items()
}
"""The variants: the kernel that each takes the place of, and the largest head that it is for."""


def matrix_attention(kernel: Kernel, params: bytes) -> Kernel | None:
    """The variant of a kernel of attention that suits a dispatch; None if there is none."""
    if kernel not in _VARIANTS:
        return None
    p = kernel.unpack(params)
    found = next((found for head, found in _VARIANTS[kernel].items() if p.head_dim <= head), None)
    if found is None or (p.q_offset | p.q_stride) % _WORDS or p.head_dim % _EIGHT:
        return None
    # Pools are addressed in units that can be larger than those that their offsets count.
    pools = zip(kernel.buffers[1:3], found.buffers[1:3], (p.k_pages_offset, p.v_pages_offset), strict=True)
    return None if any(offset * of.element % loaded.element for of, loaded, offset in pools) else found
