"""The pools of a paged key-value cache: [pages, page_size, kv_heads, head_dim], f32, f16 or q8_0.

In q8_0, each position has the signed bytes of its kv_heads * head_dim / 32 blocks, and then their float16 scales, so
that words of it are aligned; a head is a multiple of 32 elements, and all heads of a position are one of 64.
"""

from __future__ import annotations

from wasmetal.kernels.dtypes import KV, DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.tensor import Tensor


def fits_q8_0(kv_heads: int, head_dim: int) -> bool:
    """Whether a cache of such heads can be of the type Q8_0."""
    return head_dim % 32 == 0 and kv_heads * head_dim % 64 == 0


def require_pools(
    op: str, k_pages: Tensor, v_pages: Tensor, sequences: Tensor, kv_heads: int, head_dim: int
) -> dict[str, int]:
    """The pools and the page tables are for such heads. Returns their dimensions, as kernels are given them.

    Raises OpError.
    """
    check.dtypes(op, KV, k_pages=k_pages)
    check.dtypes(op, (k_pages.dtype,), v_pages=v_pages)
    check.dtypes(op, (DType.I32,), sequences=sequences)
    check.rank(op, 4, k_pages=k_pages)
    check.rank(op, 2, sequences=sequences)
    pages, page_size = k_pages.shape[:2]
    check.shape(op, "k_pages", k_pages, (pages, page_size, kv_heads, head_dim))
    check.shape(op, "v_pages", v_pages, k_pages.shape)
    check.packed(op, k_pages=k_pages, v_pages=v_pages, sequences=sequences)
    check.require(head_dim % 4 == 0, f"{op}: a head of {head_dim} elements; it must be a multiple of 4")
    check.require(
        k_pages.dtype is not DType.Q8_0 or fits_q8_0(kv_heads, head_dim),
        f"{op}: {kv_heads} heads of {head_dim} elements; "
        "in Q8_0 a head must be a multiple of 32, and all together of 64",
    )
    entries = sequences.shape[1] - 1
    check.require(
        entries > 0, f"{op}: sequences has shape {sequences.shape}; it must have a length and at least one page each"
    )
    positions = entries * page_size
    check.require(positions < 2**31, f"{op}: {positions} positions; at most {2**31 - 1} are supported")
    return {
        "pages": pages,
        "page_size": page_size,
        "sequence_count": sequences.shape[0],
        "table_length": entries,
    }
