"""How kernels bound their scratch memory: they take large tensors in blocks.

Shapes may be a guest's, and what a kernel allocates beside its tensors is charged to no one. So no scratch array has
more than BLOCK elements, none is kept from one run to the next, and a kernel has a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wasmetal.kernels.reference.views import F32

BLOCK = 1 << 18
"""Most elements of a scratch array: 1 MiB of float32, which stays in the processor's cache. A multiple of 256."""


def steps(end: int, most: int, begin: int = 0) -> Iterator[slice]:
    """Cut begin..end into slices of ``most``, or of 1 if that is less; the last may be shorter."""
    size = max(1, most)
    for start in range(begin, end, size):
        yield slice(start, min(start + size, end))


def blockwise(compute: Callable[..., object], rows: int, *matrices: F32) -> None:
    """Call an elementwise function on the first ``rows`` rows of matrices of one shape, a block at a time."""
    columns = matrices[0].shape[1]
    for some in steps(rows, BLOCK // columns):
        for part in steps(columns, BLOCK):
            compute(*[matrix[some, part] for matrix in matrices])
