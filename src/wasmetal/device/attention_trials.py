"""Trials of the kernels of attention on matrix units, on small random operands."""

from __future__ import annotations

import numpy as np

from wasmetal.device.base import Bytes
from wasmetal.device.gemm_trials import poisoned_matrix, random_matrix
from wasmetal.device.matrix_attention import MATRIX_ATTENTION
from wasmetal.device.trial import ROUNDED, Trial
from wasmetal.kernels.catalog import NO_SINKS, Kernel
from wasmetal.kernels.dtypes import KV, DType

_GAP = 16
"""Bytes before each operand, and after rows."""
_PAGE, _PAGES = 16, 12
"""Positions of a page, and pages of a pool."""
_TABLES = ([7, 2, 11, 0, 5, 9, 3, 1, 8], [4, 10, 7, 2, 6, 6, 6, 6, 6])
"""The pages of two sequences, of which some are the same."""
_LENGTHS = 139, 37
_ROWS = ((22, 0, 117), (0, 1, 33), (3, 1, 1))
"""Runs of rows: the position of the first, the sequence, how many."""
_NARROWER = 32
"""By how many elements heads are smaller in the second trial: pools of Q8_0 have blocks of as many."""


def attention_of_many_rows(variant: Kernel) -> list[Trial]:
    """Trials of the kernel that a variant takes the place of."""
    return [_trial(variant, 8, 0, None), _trial(variant, 6, _NARROWER, 40)]


def _trial(variant: Kernel, heads: int, narrower: int, window: int | None) -> Trial:
    """With a ``window``, there are sinks too; two heads of keys and values."""
    kernel, most = MATRIX_ATTENTION[variant]
    dtype = next(dtype for dtype in KV if kernel.name.endswith(f"_{dtype.suffix}"))
    kv_heads, head_dim = 2, most - narrower
    where = [(at + i, sequence) for at, sequence, count in _ROWS for i in range(count)]
    rows, gap = len(where), _GAP // 4
    tables = [[length, *table] for length, table in zip(_LENGTHS, _TABLES, strict=True)]
    columns = kv_heads * head_dim
    arrays = [
        random_matrix("f32", rows, heads * head_dim, _GAP),
        *(_pool(dtype, columns, seed) for seed in range(2)),
        np.array([(rows - 2, 0), *where], np.uint32).view(np.uint8).reshape(-1),
        np.array(tables, np.uint32).view(np.uint8).reshape(-1),
        np.linspace(-3, 3, heads, dtype=np.float32).view(np.uint8),
        poisoned_matrix("f32", rows, heads * head_dim, _GAP),
    ]
    fields: dict[str, float] = {
        **{f"{buffer.name}_offset": _GAP // buffer.element for buffer in (*kernel.buffers[:3], kernel.buffers[-1])},
        **{"rows": rows, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": head_dim**-0.5},
        **dict.fromkeys(("q_stride", "out_stride"), heads * head_dim + gap),
        **{"pages": _PAGES, "page_size": _PAGE, "sequence_count": len(tables), "table_length": len(_TABLES[0])},
        **{"window": window or 0, "sinks_offset": 0 if window else NO_SINKS},
    }
    return Trial(kernel, arrays, "f32", rows * kv_heads, fields, ROUNDED)


def _pool(dtype: DType, columns: int, seed: int) -> Bytes:
    """The bytes of a pool of random elements, after a gap."""
    slots, random = _PAGE * _PAGES, np.random.default_rng((columns, seed))
    if dtype is DType.Q8_0:  # a slot's bytes, then their scales
        scales = np.full((slots, columns // 32), 1 / 64, np.float16).view(np.uint8)
        pool = np.concatenate([random.integers(0, 256, (slots, columns), np.uint8), scales], axis=1).reshape(-1)
        return np.concatenate([np.zeros(_GAP, np.uint8), pool])
    kind = np.float32 if dtype is DType.F32 else np.float16
    values = random.standard_normal((slots, columns)).astype(kind)
    return np.concatenate([np.zeros(_GAP, np.uint8), values.view(np.uint8).reshape(-1)])
