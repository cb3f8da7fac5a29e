"""Kernels of attention whose threads read each other's values, in place of those that exchange them in group memory."""

from __future__ import annotations

from wasmetal.kernels.catalog import CATALOG, SHUFFLED, Kernel

_WIDTH = 32
"""Elements of a head for each vector that a thread has: eight threads have vectors of four."""

_VARIANTS = {
    kernel: {vectors: CATALOG[f"shuffled{vectors}_{kernel.name}"] for vectors in SHUFFLED}
    for kernel in CATALOG.values()
    if f"shuffled{SHUFFLED[0]}_{kernel.name}" in CATALOG
}


def shuffled(kernel: Kernel, params: bytes) -> Kernel:
    """The variant that suits the heads' size; the kernel itself if there is none."""
    if kernel not in _VARIANTS:
        return kernel
    head_dim = kernel.unpack(params).head_dim
    return next((found for vectors, found in _VARIANTS[kernel].items() if head_dim <= _WIDTH * vectors), kernel)
