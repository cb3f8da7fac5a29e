"""The next token of each row, chosen from its largest logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.catalog import NEXT_TOKEN_SETTINGS
from wasmetal.kernels.reference.views import F32, Bytes, array, words

_FARTHEST = np.float32(-1e4)


def next_token(
    p: SimpleNamespace,
    ids: Bytes,
    values: Bytes,
    settings: Bytes,
    tokens: Bytes,
    batch: Bytes,
    sequences: Bytes,
    chosen: Bytes,
) -> Callable[[], None]:
    """Choose tokens, and make each row one of its token at the next position."""
    candidates = array(ids, p.ids_offset * 4, (p.rows, p.k), np.uint32)
    logits = array(values, p.values_offset * 4, (p.rows, p.k))
    numbers = array(settings, p.settings_offset * 4, (p.rows, NEXT_TOKEN_SETTINGS + p.steps), np.uint32)
    floats = numbers.view(np.float32)
    following = words(tokens, p.tokens_offset, p.rows)
    rows = words(batch, p.batch_offset, 2 + 2 * p.rows)
    entries = words(sequences, p.sequences_offset, p.sequence_count * (p.table_length + 1))
    results = array(chosen, p.chosen_offset * 4, (p.rows, p.steps), np.uint32)

    def run() -> None:
        for row in range(min(rows[0], p.rows)):
            position = rows[2 + 2 * row]
            length = min(rows[3 + 2 * row], p.sequence_count - 1) * (p.table_length + 1)
            first, count = int(numbers[row, 4]), min(int(numbers[row, 5]), p.steps)
            step = position - first
            if position >= entries[length] or not 0 <= step < count:
                continue
            temperature, top_p, min_p = floats[row, :3].tolist()
            candidate, peak = 0, logits[row, 0]
            if temperature > 0 and np.isfinite(peak):
                some = logits[row, : min(int(numbers[row, 3]), p.k)]
                weights = np.exp(np.maximum((some - peak) / np.float32(temperature), _FARTHEST))
                candidate = _drawn(weights, top_p, min_p, float(floats[row, NEXT_TOKEN_SETTINGS + step]))
            token = int(candidates[row, candidate])
            results[row, step] = token = 0 if token == 0xFFFFFFFF else token
            if step + 1 < count:
                following[row], rows[2 + 2 * row], entries[length] = token, position + 1, position + 2
            else:
                entries[length] = 0

    return run


def _drawn(weights: F32, top_p: float, min_p: float, random: float) -> int:
    """The number of the candidate that a random number of 0 to 1 chooses."""
    kept = len(weights)
    if top_p < 1 or min_p > 0:
        enough = top_p * float(weights.sum()) if top_p < 1 else np.inf
        before = np.cumsum(weights) - weights
        ends = np.flatnonzero((before >= enough) | (weights < min_p))
        ends = ends[ends > 0]
        kept = int(ends[0]) if ends.size else kept
    left, result = random * float(weights[:kept].sum()), 0
    each: Sequence[float] = weights[:kept].tolist()
    for number, weight in enumerate(each):
        if left < 0 or weight == 0:
            break
        result = number
        left -= weight
    return result


KERNELS: dict[str, Callable[..., Callable[[], object]]] = {"next_token": next_token}
