"""Several tokens of a sequence in one submission: the device chooses each, and goes on with it.

Between two tokens the host would have to wake up, choose, and submit again, while the device waits: on a large GPU that
takes as long as a part of the token. And with many sequences Python can do it for only so many tokens a second.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import CommandList, Device
from wasmetal.kernels.catalog import NEXT_TOKEN_SETTINGS
from wasmetal.models.architectures.network import Inputs, KVPools, Network
from wasmetal.models.lm.filters import Filters
from wasmetal.models.lm.heads import TOP, TOP_ROWS
from wasmetal.models.lm.shared import Shared
from wasmetal.ops import (
    DType,
    Recorder,
    Tensor,
    next_token,
    top_logits,
    top_logits_scratch_shape,
)

MOST_STEPS = 32
"""Most tokens of a sequence that a submission chooses."""


@dataclass(slots=True, eq=False)
class Draws:
    """How tokens that follow one another are chosen, in one submission after the other; and which ones have been."""

    filters: Filters
    randoms: NDArray[np.float64]
    """From 0 to 1, [n]: one for each token."""
    stops: frozenset[int] = frozenset()
    """No submission follows one in which any of these was chosen,"""
    until: float = math.inf
    """nor one that has ended after this (``time.monotonic()``)."""
    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    """How many the latest submission chooses: up to MOST_STEPS."""

    @property
    def left(self) -> int:
        """Tokens that have not been chosen yet."""
        return len(self.randoms) - len(self.tokens)

    @property
    def stopped(self) -> bool:
        """Whether a stop is among the tokens of the latest submission, which has ended."""
        return not self.stops.isdisjoint(self.tokens[len(self.tokens) - self.steps :])

    @property
    def ended(self) -> bool:
        """Whether no submission is to follow the latest one, which has ended."""
        return not self.left or self.stopped or time.monotonic() >= self.until


class MultiStep:
    """The lists of a pass that choose tokens, each of which a submission runs once for each token."""

    def __init__(
        self,
        device: Device,
        network: Network,
        pools: Sequence[KVPools],
        inputs: Inputs,
        settings: Tensor,
        logits: Tensor,
    ) -> None:
        """``settings`` [S, ...] as ``next_token`` takes them, of as many rows as ``logits`` f32 [S, vocab_size]."""
        self._device = device
        self._network = network
        self._pools = pools
        self._inputs = inputs
        self._settings = settings
        self._logits = logits
        rows = logits.shape[0]
        self._chosen = Shared(device, DType.I32, rows, MOST_STEPS)
        self._lists: dict[tuple[int, int, int], CommandList] = {}
        self._scratch: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._draws: Sequence[Draws] = ()
        """What the latest submission chooses, row by row."""

    def lists(self, fitting: int, draws: Sequence[Draws]) -> list[CommandList]:
        """The lists for rows of a pass of the class ``fitting``, the first of which have these draws."""
        self._draws = draws
        k = max([each.filters.candidates for each in draws])
        key = fitting, TOP_ROWS[bisect_left(TOP_ROWS, len(draws))], TOP[bisect_left(TOP, k)]
        if key not in self._lists:
            self._lists[key] = self._record(*key)
        return [self._lists[key]] * max([each.steps for each in draws])

    def collect(self) -> None:
        """Take what the latest submission, which has ended, has chosen."""
        draws, self._draws = self._draws, ()
        for row, each in enumerate(draws):
            each.tokens += self._chosen.values[row, : each.steps].tolist()

    def forget(self) -> None:
        """Whoever wanted what the latest submission chooses does not take it."""
        self._draws = ()

    def close(self) -> None:
        """Release the lists and their memory. Idempotent."""
        for commands in self._lists.values():
            commands.close()
        for tensors in self._scratch.values():
            for tensor in tensors:
                tensor.buffer.close()
        self._chosen.close()

    def _record(self, fitting: int, rows: int, k: int) -> CommandList:
        """One more token for up to ``rows`` rows, of a pass of the class ``fitting``, with the k largest logits."""
        inputs, logits = self._inputs, self._logits
        all_rows = min(fitting, logits.shape[0])
        commands = self._device.record()
        rec = Recorder(self._device.info, commands)
        self._network.body(rec, inputs.rows(fitting), self._pools)
        batch = inputs.batch.rows(0, 1 + all_rows) if all_rows > 1 else None
        self._network.head(rec, None, logits.rows(0, all_rows), batch)
        rows = min(rows, all_rows)
        ids, values, totals, scratch = self._found(rows, k)
        top_logits(rec, logits.rows(0, rows), ids, values, totals, scratch=scratch)
        next_token(
            rec,
            *(ids, values, self._settings.rows(0, rows), inputs.ids.rows(0, rows), inputs.batch.rows(0, 1 + rows)),
            *(inputs.sequences, self._chosen.tensor.rows(0, rows)),
        )
        commands.finish()
        return commands

    def _found(self, rows: int, k: int) -> tuple[Tensor, ...]:
        """Ids, values, totals and scratch memory for ``top_logits``, on the device."""
        if (rows, k) not in self._scratch:
            shapes = (rows, k), (rows, k), (rows, 2), top_logits_scratch_shape(rows, self._logits.shape[1], k)
            dtypes = DType.I32, DType.F32, DType.F32, DType.I32
            self._scratch[rows, k] = tuple(
                Tensor(self._device.allocate(4 * math.prod(shape)), 0, dtype, shape)
                for dtype, shape in zip(dtypes, shapes, strict=True)
            )
        return self._scratch[rows, k]


def write_settings(settings: np.ndarray, row: int, draws: Draws, position: int) -> None:
    """Write a row's settings for tokens from ``position`` on to i32 [S, ...], as ``next_token`` reads them."""
    how, begin, count = draws.filters, len(draws.tokens), draws.steps
    floats = settings[row].view(np.float32)
    floats[:3] = how.temperature, how.top_p, how.min_p
    settings[row, 3:NEXT_TOKEN_SETTINGS] = how.top_k, position, count
    floats[NEXT_TOKEN_SETTINGS : NEXT_TOKEN_SETTINGS + count] = draws.randoms[begin : begin + count]
