"""Rows of a table by index."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference.batch import valid_rows
from wasmetal.kernels.reference.blocks import EXPAND, columns_of
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import Bytes, array, rows


def embed(dtype: DType, p: SimpleNamespace, table: Bytes, ids: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """out[t] = table[ids[t]], for the ids whose rows are bound; ids past the table are clamped to its last row."""
    expand = EXPAND[dtype]
    source = array(table, p.table_offset * 4, (p.bound_rows, dtype.row_bytes(p.columns)), np.uint8)
    indices = array(ids, p.ids_offset * 4, (p.rows,), np.uint32)
    target = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)
    active = valid_rows(p, batch)

    def run() -> None:
        for some in steps(active(), BLOCK // p.columns):
            local = np.minimum(indices[some], p.table_rows - 1).astype(np.int64) - p.first_row
            here = np.flatnonzero((local >= 0) & (local < p.bound_rows))
            if here.size:
                for part in steps(p.columns, BLOCK):
                    target[some][here, part] = expand(source[local[here], columns_of(dtype, part)])

    return run


KERNELS = {f"embed_{dtype.suffix}": partial(embed, dtype) for dtype in EXPAND}
