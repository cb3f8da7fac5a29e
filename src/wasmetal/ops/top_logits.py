"""The largest logits of each row, so that the others need not leave the device."""

from __future__ import annotations

import math

from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import EXPONENTIAL, GROUP, Work

MOST = 64
"""The largest k: what a group keeps in its memory (``top_logits.slang``)."""
MOST_PARTS = 256
"""Parts of a row, at most."""
_COLUMNS = 1024
"""Columns that a group reads at once, or candidates."""
_GROUPS = 512
"""Groups among which the work is split: about four for each multiprocessor of a large GPU."""
_FEWEST = 8
"""Parts of a row, at least, if there are columns for so many."""
_ROUND = 1 << 17
"""Operations of a group to find the largest of what it has read;"""
_REMAINING = 9
"""besides, it compares up to this many keys for each of k with each other."""


def top_logits_scratch_shape(rows: int, vocabulary: int, k: int) -> tuple[int, int, int, int]:
    """The shape of the I32 scratch memory with which ``top_logits`` makes as many parts as suit a GPU."""
    parts = min(-(-vocabulary // _COLUMNS), max(_GROUPS // rows, _FEWEST), MOST_PARTS)
    return rows, k + 1, parts, 2


def top_logits(
    rec: Recorder,
    logits: Tensor,
    ids: Tensor,
    values: Tensor,
    totals: Tensor,
    inverse_temperature: float = 1.0,
    *,
    scratch: Tensor,
) -> None:
    """The k largest logits of each row, in descending order, equal ones by id; and what makes probabilities of them.

    logits f32 [..., V], of two dimensions with rows that may be strided; ids I32 and values f32 [..., k], k from 1 to
    64; totals f32 [..., 2]: the largest logit m, and the sum over the whole row of exp((l - m) inverse_temperature),
    which is finite and not negative. scratch I32 [rows, k + 1, parts, 2], of at most 256 parts into which a row is
    split (``top_logits_scratch_shape``). Raises OpError.

    NaN counts as -inf and is given as that, and -0 as 0. The exponential of -inf is 0, whatever the temperature, so the
    sum of a row of nothing else is 0; in the sum, inf is the largest float. If V is less than k, the remaining ids are
    -1, and the values -inf.
    """
    name = "top_logits"
    check.dtypes(name, (DType.F32,), logits=logits, values=values, totals=totals)
    check.dtypes(name, (DType.I32,), ids=ids, scratch=scratch)
    k, outer = ids.shape[-1], logits.shape[:-1]
    check.require(k <= MOST, f"{name}: the {k} largest; at most {MOST} are supported")
    check.shape(name, "ids", ids, (*outer, k))
    check.shape(name, "values", values, (*outer, k))
    check.shape(name, "totals", totals, (*outer, 2))
    check.require(
        math.isfinite(inverse_temperature) and inverse_temperature >= 0,
        f"{name}: an inverse temperature of {inverse_temperature}; it must be finite and not negative",
    )
    check.rank(name, 4, scratch=scratch)
    check.packed(name, ids=ids, values=values, totals=totals, scratch=scratch)
    logits = check.matrix(name, "logits", logits)
    rows, columns = logits.shape
    parts = scratch.shape[2]
    check.shape(name, "scratch", scratch, (rows, k + 1, parts, 2))
    check.require(parts <= MOST_PARTS, f"{name}: scratch has {parts} parts; at most {MOST_PARTS} are supported")
    check.separate(name, scratch, logits=logits, ids=ids, values=values, totals=totals)
    check.separate(name, ids, logits=logits, values=values, totals=totals)
    check.separate(name, values, logits=logits, totals=totals)
    check.separate(name, totals, logits=logits)
    ids, values, totals = ids.reshape(rows, k), values.reshape(rows, k), totals.reshape(rows, 2)
    one_round = _ROUND + 3 * (_REMAINING * k) ** 2
    joining = -(-k * parts // _COLUMNS) * one_round + parts * EXPONENTIAL + GROUP
    row = parts * (-(-columns // (parts * _COLUMNS)) * one_round + GROUP) + joining
    work = Work(
        rows, columns, 8 + EXPONENTIAL, row, column_step=columns, aligned=(logits, ids, values, totals, scratch)
    )
    for part in rec.parts(name, work):
        some = scratch.rows(part.top, part.bottom)
        shape = {"rows": part.rows, "k": k, "parts": parts, "inverse_temperature": inverse_temperature}
        rec.dispatch(
            "top_logits_part",
            (logits.rows(part.top, part.bottom), some),
            part.rows * parts,
            part.work - part.rows * joining,
            columns=columns,
            logits_stride=logits.row_stride,
            **shape,
        )
        rec.dispatch(
            "top_logits_merge",
            (some, *(tensor.rows(part.top, part.bottom) for tensor in (ids, values, totals))),
            part.rows,
            part.rows * joining,
            **shape,
        )
