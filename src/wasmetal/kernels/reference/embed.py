"""Rows of a table by index."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.reference.blocks import FORMATS, row_bytes
from wasmetal.kernels.reference.views import Bytes, active_rows, array, rows


def embed(kind: str, p: SimpleNamespace, table: Bytes, ids: Bytes, out: Bytes, step: Bytes) -> Callable[[], None]:
    """out[t] = table[ids[t]], for the ids whose rows are bound; ids past the table count as its last row."""
    expand = FORMATS[kind][0]
    source = array(table, p.table_offset * 4, (p.bound_rows, row_bytes(kind, p.columns)), np.uint8)
    indices = array(ids, p.ids_offset * 4, (p.rows,), np.uint32)
    target = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)
    active = active_rows(p, step)

    def run() -> None:
        n = active()
        local = np.minimum(indices[:n], p.table_rows - 1).astype(np.int64) - p.first_row
        here = np.flatnonzero((local >= 0) & (local < p.bound_rows))
        if here.size:
            target[here] = expand(source[local[here]])

    return run


KERNELS = {f"embed_{kind}": partial(embed, kind) for kind in FORMATS}
