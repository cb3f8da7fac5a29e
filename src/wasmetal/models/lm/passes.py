"""Forward passes over rows of several sequences: the buffers and command lists of one submission."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wasmetal.device.base import CommandList, Device, MemoryKind, Submission
from wasmetal.errors import OutOfDeviceMemoryError
from wasmetal.kernels.catalog import NEXT_TOKEN_SETTINGS
from wasmetal.models.architectures.network import Inputs, Network
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.lm.heads import Head, Heads, Wanted
from wasmetal.models.lm.kv_cache import KVCache
from wasmetal.models.lm.multi_step import MOST_STEPS, Draws, MultiStep, write_settings
from wasmetal.models.lm.states import State, States
from wasmetal.ops import ALIGNMENT, DType, Recorder, Tensor, batch_shape, copy, sequences_shape, settings_shape

ROWS = (1, 64, 512)
"""Shape classes: the forward pass is recorded once for each; a batch takes the smallest that its rows fit."""
SEQUENCES = 64
"""Most sequences in a batch."""
PASSES = 2
"""Passes of a model: one may be held up by a submission that was given up."""

_ALIGNMENT = 256
"""Every tensor of the input buffer begins at a multiple of this many bytes, at which any device's bindings may
begin."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one sequence in a batch."""

    tokens: Sequence[int]
    position: int
    """The position of the first token; the others follow."""
    pages: Sequence[int]
    """The sequence's page table, which covers the last token's position."""


class Pass:
    """What one forward pass in flight uses: the buffer that the host writes inputs to, and the lists that read it."""

    def __init__(
        self,
        device: Device,
        network: Network,
        cache: KVCache,
        buffers: BufferGroup,
        pages: int,
        deterministic: bool = False,
    ):
        """``pages``: of a sequence, at most. ``deterministic``: use the same kernels whatever the number of rows."""
        self.submission: Submission | None = None
        """The latest submission."""
        self._device = device
        self._network = network
        self._cache = cache
        self._deterministic = deterministic
        self._classes = (ROWS[1],) if deterministic else ROWS
        self._lists: dict[int, CommandList] = {}
        self._copies: dict[int, CommandList] = {}
        self._multi_step: MultiStep | None = None
        self._heads: Heads | None = None
        self._states: States | None = None
        self._room_for_heads = True
        self._version = cache.version
        """Of the cache with which the lists were recorded."""
        shapes = {
            "ids": (ROWS[-1],),
            "batch": batch_shape(ROWS[-1]),
            "settings": settings_shape(SEQUENCES, MOST_STEPS),
            "sequences": sequences_shape(SEQUENCES, pages),
        }
        sizes = {name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}
        starts = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes.values())]).tolist()
        self._buffer = buffers.allocate(starts[-1], MemoryKind.SHARED)
        self._copy = None if device.info.unified else buffers.allocate(starts[-1])
        """What kernels read, if the inputs are far from the device: they are needed in every layer."""
        written, read = (
            [Tensor(buffer, start, DType.I32, shape) for shape, start in zip(shapes.values(), starts, strict=False)]
            for buffer in (self._buffer, self._copy or self._buffer)
        )
        self._ids, self._batch, self._settings, self._sequences = (tensor.numpy() for tensor in written)
        ids, batch, self._settings_read, sequences = read
        self._inputs = Inputs(ids, batch, sequences)
        # Single elements of a memoryview are written four times as fast as those of an array.
        self._id, self._word = (array.reshape(-1).data for array in (self._ids, self._batch))
        self._tables: list[Sequence[int]] = [()] * SEQUENCES
        """The page table of each sequence, as it was last written."""

    @property
    def pending(self) -> bool:
        """Whether the latest submission has not ended yet."""
        return self.submission is not None and self.submission.pending

    def write(self, segments: Sequence[Segment]) -> int:
        """Write the inputs of the next submission: rows of up to SEQUENCES sequences, at most ROWS[-1] in all.

        Returns how many rows are computed.
        """
        row = 0
        for number, segment in enumerate(segments):
            count, position = len(segment.tokens), segment.position
            if count == 1:
                self._id[row], self._word[2 + 2 * row], self._word[3 + 2 * row] = segment.tokens[0], position, number
            else:
                self._ids[row : row + count] = segment.tokens
                self._batch[1 + row : 1 + row + count, 0] = range(position, position + count)
                self._batch[1 + row : 1 + row + count, 1] = number
            self._sequences[number, 0] = position + count
            if self._tables[number] != segment.pages:
                self._sequences[number, 1 : 1 + len(segment.pages)] = self._tables[number] = segment.pages
            row += count
        if self._deterministic and row <= self._device.info.few_rows:
            row = self._pad(row, self._device.info.few_rows + 1, len(segments))
        self._word[0] = row
        return row

    def _pad(self, begin: int, end: int, sequence: int) -> int:
        """Rows of an empty sequence, which are computed and neither appended to the cache nor attended to."""
        self._ids[begin:end] = 0
        self._batch[1 + begin : 1 + end] = 0, sequence
        self._sequences[sequence, 0] = 0
        return end

    def body(self, rows: int) -> CommandList:
        """The list that computes everything but the heads for a batch of ``rows`` rows."""
        fitting = self._fitting(rows)
        if fitting not in self._lists:
            commands = self._device.record()
            rec = Recorder(self._device.info, commands)
            self._record_copy(rec, fitting)
            self._network.body(rec, self._inputs.rows(fitting), self._cache.layers)
            commands.finish()
            self._lists[fitting] = commands
        return self._lists[fitting]

    def choosing(self, rows: int, draws: Sequence[Draws], positions: Sequence[int]) -> list[CommandList]:
        """The lists that choose tokens for ``rows`` rows, each the only one of its sequence, and go on with them.

        The first rows have these ``draws``, and ``positions``; the others are computed, and nothing is chosen for them.
        Raises OutOfDeviceMemoryError.
        """
        fitting = self._fitting(rows)
        for row, (each, position) in enumerate(zip(draws, positions, strict=True)):
            write_settings(self._settings, row, each, position)
        self._settings[len(draws) : rows, NEXT_TOKEN_SETTINGS - 1] = 0  # tokens
        if self._multi_step is None:
            logits = self._all_heads().logits
            parts = self._inputs, self._settings_read, logits
            self._multi_step = MultiStep(self._device, self._network, self._cache.layers, *parts)
        lists = self._multi_step.lists(fitting, draws)
        if self._heads:
            self._heads.forget()
        if self._states:
            self._states.forget()
        if not self._copy:
            return lists
        if fitting not in self._copies:
            commands = self._copies[fitting] = self._device.record()
            self._record_copy(Recorder(self._device.info, commands), fitting)
            commands.finish()
        return [self._copies[fitting], *lists]

    def heads(self, wanted: Wanted) -> list[CommandList]:
        """The lists that give each of ``wanted`` the logits after its row, or the row itself.

        Several are computed together, if there is memory for that. Raises OutOfDeviceMemoryError if there is not, and
        it is the only way.
        """
        states = [(each, row) for each, row in wanted if isinstance(each, State)]
        others = [(each, row) for each, row in wanted if not isinstance(each, State)]
        for each in (self._heads, self._multi_step, self._states):
            if each:
                each.forget()
        lists = []
        if states:
            if self._states is None:
                self._states = States(self._device, self._network, SEQUENCES)
            lists = self._states.lists(states)
        alone = [(each, row) for each, row in others if isinstance(each, Head)]
        must = self._deterministic or len(alone) < len(others)
        if others and (must or len(others) > 1) and (heads := self._joint_heads(must)):
            return lists + heads.lists(others)
        for head, row in alone:
            head.select(row)
        return lists + [head.commands for head, _ in alone]

    def collect(self) -> None:
        """Take what the latest submission, which has ended, has found of logits, or chosen, or computed of states."""
        for each in (self._heads, self._multi_step, self._states):
            if each:
                each.collect()

    def close(self) -> None:
        """Release the lists. Idempotent."""
        self._close_lists()
        if self._heads:
            self._heads.close()
            self._heads = None
        if self._states:
            self._states.close()
            self._states = None

    def _fitting(self, rows: int) -> int:
        """The class of a batch of ``rows`` rows. Lists of a cache that has been replaced are closed first."""
        if self._version != self._cache.version:
            self._close_lists()
            self._version = self._cache.version
        return self._classes[bisect_left(self._classes, rows)]

    def _record_copy(self, rec: Recorder, fitting: int) -> None:
        """Record the copy of what ``fitting`` rows read of the inputs, if kernels read a copy of them."""
        if self._copy:
            used = self._inputs.sequences.rows(0, min(fitting, SEQUENCES))
            words = -(-(used.offset + used.nbytes) // ALIGNMENT) * ALIGNMENT // 4
            copy(rec, *(Tensor(buffer, 0, DType.I32, (words,)) for buffer in (self._buffer, self._copy)))

    def _all_heads(self) -> Heads:
        """Made when they are first needed. Raises OutOfDeviceMemoryError."""
        if self._heads is None:
            least = self._device.info.few_rows + 1 if self._deterministic else 0
            self._heads = Heads(self._device, self._network, SEQUENCES, least)
        return self._heads

    def _joint_heads(self, must: bool) -> Heads | None:
        """None if there is no memory for them, unless it ``must`` be."""
        if self._heads is None and (must or self._room_for_heads):
            try:
                return self._all_heads()
            except OutOfDeviceMemoryError:
                if must:
                    raise
                self._room_for_heads = False
        return self._heads

    def _close_lists(self) -> None:
        for commands in (*self._lists.values(), *self._copies.values()):
            commands.close()
        if self._multi_step:
            self._multi_step.close()
            self._multi_step = None
        self._lists, self._copies = {}, {}
