"""Choosing the next token on the device, so that it can go on without the host."""

from __future__ import annotations

from wasmetal.kernels.catalog import NEXT_TOKEN_SETTINGS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.top_logits import MOST
from wasmetal.ops.work import EXPONENTIAL, GROUP


def settings_shape(rows: int, steps: int) -> tuple[int, int]:
    """The shape of ``settings`` for up to ``rows`` rows that take up to ``steps`` tokens, one after another."""
    return rows, NEXT_TOKEN_SETTINGS + steps


def next_token(
    rec: Recorder,
    ids: Tensor,
    values: Tensor,
    settings: Tensor,
    tokens: Tensor,
    batch: Tensor,
    sequences: Tensor,
    chosen: Tensor,
) -> None:
    """Choose each valid row's next token from its largest logits, and make it the row's token at the next position.

    ids I32 and values f32 [T, k], k from 1 to 64, as ``top_logits`` gives them; tokens I32 [T], batch and sequences the
    inputs of the pass that gave the logits, in which each row is the last of its sequence; chosen I32 [T, N].
    ``settings`` I32 [T, 6 + N] says how row by row: temperature, top-p and min-p, the bits of floats; top-k; the
    position of the row's first token and how many tokens it takes, up to N; then a random number from 0 to 1 for each,
    the bits of floats. Raises OpError.

    A row's token goes to ``chosen``, to the place of its position, counted from the first; and to ``tokens``, and the
    row's position and its sequence's length are then one more: the next pass runs that token. After a row's last token
    its sequence has the length 0, and nothing is appended to it or chosen for it.

    Temperature, top-k, top-p (A. Holtzman et al., 2019) and min-p (M. Nguyen et al., 2024) work as in ``sampling.py``.
    """
    name = "next_token"
    check.dtypes(name, (DType.F32,), values=values)
    integers = {"ids": ids, "settings": settings, "tokens": tokens, "sequences": sequences, "chosen": chosen}
    check.dtypes(name, (DType.I32,), **integers)
    check.rank(name, 2, ids=ids, settings=settings, sequences=sequences, chosen=chosen)
    rows, k = ids.shape
    steps = chosen.shape[1]
    check.require(k <= MOST, f"{name}: the {k} largest; at most {MOST} are supported")
    check.shape(name, "values", values, (rows, k))
    check.shape(name, "settings", settings, settings_shape(rows, steps))
    check.shape(name, "tokens", tokens, (rows,))
    check.shape(name, "chosen", chosen, (rows, steps))
    check.batch(name, batch, rows)
    check.packed(name, values=values, **integers)
    inputs = {"ids": ids, "values": values, "settings": settings}
    check.separate(name, chosen, tokens=tokens, batch=batch, sequences=sequences, **inputs)
    check.separate(name, sequences, tokens=tokens, batch=batch, **inputs)
    check.separate(name, batch, tokens=tokens, **inputs)
    check.separate(name, tokens, **inputs)
    rec.dispatch(
        name,
        (ids, values, settings, tokens, batch, sequences, chosen),
        rows,
        rows * (k * EXPONENTIAL + GROUP),
        rows=rows,
        k=k,
        steps=steps,
        sequence_count=sequences.shape[0],
        table_length=sequences.shape[1] - 1,
    )
