"""Heads: what is wanted of the logits after rows of a batch, and the command lists that compute it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import CommandList, Device, Submission
from wasmetal.errors import ModelError
from wasmetal.models.architectures.network import Network
from wasmetal.models.lm.shared import Shared
from wasmetal.models.lm.states import State
from wasmetal.ops import (
    DType,
    Recorder,
    Tensor,
    batch_shape,
    embed,
    top_logits,
    top_logits_scratch_shape,
)

MOST_TOP = 64
"""The most logits that :class:`TopLogits` has."""
MOST_ROWS = 16
"""Of a session in a batch, logits can be had after so many tokens."""
TOP = (1, 8, MOST_TOP)
"""Kernels find one of these numbers of logits: the least that is enough."""
TOP_ROWS = (1, 4, 16, 64)
"""And for one of these numbers of rows."""


class Head:
    """All logits after one row, written to one tensor."""

    def __init__(self, device: Device, network: Network, logits: Tensor) -> None:
        """Record it. Raises OpError if ``logits`` is not f32 [vocab_size]; OutOfDeviceMemoryError."""
        self._device = device
        self._row = Shared(device, DType.I32, 1)
        self._from: dict[Heads, CommandList] = {}
        self.logits = logits
        self.commands: CommandList = device.record()
        """Computes them from the row of a forward pass."""
        self.submission: Submission | None = None
        """The latest submission."""
        try:
            self._out = logits.reshape(1, network.config.vocab_size)
            network.head(Recorder(device.info, self.commands), self._row.tensor, self._out)
            self.commands.finish()
        except BaseException:
            self.close()
            raise

    def select(self, row: int) -> None:
        """Choose the row whose logits the next submission writes."""
        self._row.values[0] = row

    def taking(self, heads: Heads) -> CommandList:
        """The list that takes the logits from a row of ``heads`` instead."""
        if heads not in self._from:
            commands = self._device.record()
            embed(Recorder(self._device.info, commands), heads.logits, self._row.tensor, self._out)
            commands.finish()
            self._from[heads] = commands
        return self._from[heads]

    @property
    def pending(self) -> bool:
        """Whether the latest submission has not ended yet."""
        return self.submission is not None and self.submission.pending

    def close(self) -> None:
        """Release the lists. Idempotent."""
        for commands in (self.commands, *self._from.values()):
            commands.close()
        self._row.close()


class TopLogits:
    """The largest logits after one row, which the device finds, so that the others need not leave it.

    What is found is there when :meth:`Session.forward` returns. ``ids`` and ``values`` [k] are in descending order of
    the logits, equal ones by id; where a vocabulary has fewer than k tokens, -1 and -inf take their place. A token's
    probability is exp(value - ``maximum``) / ``total``.
    """

    __slots__ = ("found", "k", "sums")

    def __init__(self, k: int) -> None:
        """``k``: how many, up to MOST_TOP. Raises ModelError."""
        if not 1 <= k <= MOST_TOP:
            raise ModelError(f"the {k} largest logits; 1 to {MOST_TOP} are supported")
        self.k = k
        self.found: NDArray[np.int32] = np.zeros((k, 2), np.int32)
        """Ids, and the bits of the values: i32 [k, 2]."""
        self.sums: NDArray[np.float32] = _NO_SUMS
        """``maximum`` and ``total``: f32 [2]."""

    @property
    def ids(self) -> NDArray[np.int32]:
        """The tokens, i32 [k]."""
        return self.found[:, 0]

    @property
    def values(self) -> NDArray[np.float32]:
        """Their logits, f32 [k]."""
        return self.found[:, 1].view(np.float32)

    @property
    def maximum(self) -> float:
        """The largest logit."""
        return float(self.sums[0])

    @property
    def total(self) -> float:
        """The sum of exp(logit - ``maximum``) over the vocabulary."""
        return float(self.sums[1])


_NO_SUMS = np.array([-math.inf, 0.0], np.float32)

Wanted = Sequence[tuple[Head | TopLogits | State, int]]
"""What is wanted, each after one row of a pass."""


class Heads:
    """Computes the logits after several rows at once, so that the vocabulary is read once for all of them."""

    def __init__(self, device: Device, network: Network, rows: int, least: int = 0) -> None:
        """For up to ``rows`` rows. Raises OutOfDeviceMemoryError.

        ``least``: so many are computed, even if fewer are wanted, and by the kernels for many rows, even if it is one.
        """
        self._device = device
        self._least = least
        shape = rows, network.config.vocab_size
        self.logits = Tensor(device.allocate(DType.F32.row_bytes(math.prod(shape))), 0, DType.F32, shape)
        self._rows, self._batch = Shared(device, DType.I32, rows), Shared(device, DType.I32, *batch_shape(rows))
        self._one, self._many = device.record(), device.record()
        network.head(Recorder(device.info, self._one), self._rows.tensor.rows(0, 1), self.logits.rows(0, 1))
        network.head(Recorder(device.info, self._many), self._rows.tensor, self.logits, self._batch.tensor)
        for commands in (self._one, self._many):
            commands.finish()
        self._tops: dict[tuple[int, int], _Top] = {}
        self._wanted: Sequence[tuple[TopLogits, int]] = ()
        """What the latest submission finds, and in which row."""
        self._finds: _Top | None = None
        """What finds it."""

    def lists(self, wanted: Sequence[tuple[Head | TopLogits, int]]) -> list[CommandList]:
        """The lists that give each of ``wanted`` the logits after its row of the pass."""
        rows = max(len(wanted), self._least)
        self._batch.values[0, 0] = rows
        self._rows.values[: len(wanted)] = [row for _, row in wanted]
        lists = [self._many if rows > 1 or self._least else self._one]
        tops = self._wanted = []
        for index, (each, _) in enumerate(wanted):
            if isinstance(each, TopLogits):
                tops.append((each, index))
            else:
                each.select(index)
                lists.append(each.taking(self))
        if tops:
            top = self._finds = self._top(1 + tops[-1][1], max([each.k for each, _ in tops]))
            lists.append(top.commands)
        return lists

    def forget(self) -> None:
        """Whoever wanted what the latest submission finds does not take it."""
        self._wanted = ()

    def collect(self) -> None:
        """Take what the latest submission, which has ended, has found."""
        if not self._wanted or not self._finds:
            return
        wanted, self._wanted = self._wanted, ()
        found, sums = self._finds.take(1 + wanted[-1][1])
        for each, row in wanted:
            each.found, each.sums = found[row, : each.k], sums[row]

    def _top(self, rows: int, k: int) -> _Top:
        key = TOP_ROWS[bisect_left(TOP_ROWS, rows)], TOP[bisect_left(TOP, k)]
        if key not in self._tops:
            self._tops[key] = _Top(self._device, self.logits.rows(0, key[0]), key[1])
        return self._tops[key]

    def close(self) -> None:
        """Release the lists and their memory. Idempotent."""
        self._one.close()
        self._many.close()
        for top in self._tops.values():
            top.close()
        for each in (self._rows, self._batch):
            each.close()
        self.logits.buffer.close()


class _Top:
    """Finds the k largest logits of each row."""

    def __init__(self, device: Device, logits: Tensor, k: int) -> None:
        rows, vocabulary = logits.shape
        self.ids = Shared(device, DType.I32, rows, k)
        self.values, self.totals = Shared(device, DType.F32, rows, k), Shared(device, DType.F32, rows, 2)
        shape = top_logits_scratch_shape(rows, vocabulary, k)
        scratch = Tensor(device.allocate(4 * math.prod(shape)), 0, DType.I32, shape)
        self.commands = device.record()
        found = self.ids.tensor, self.values.tensor, self.totals.tensor
        top_logits(Recorder(device.info, self.commands), logits, *found, scratch=scratch)
        self.commands.finish()
        self._scratch = scratch.buffer

    def take(self, rows: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """A copy of what was found in the first rows: i32 [rows, k, 2], ids and the bits of values; f32 [rows, 2]."""
        found = np.empty((rows, self.ids.values.shape[1], 2), np.int32)
        found[:, :, 0], found[:, :, 1] = self.ids.values[:rows], self.values.values[:rows].view(np.int32)
        return found, self.totals.values[:rows].copy()

    def close(self) -> None:
        """Release the list and its memory. Idempotent."""
        self.commands.close()
        for each in (self.ids, self.values, self.totals):
            each.close()
        self._scratch.close()
