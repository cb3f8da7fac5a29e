"""Forward passes over rows of several sequences: the buffers and command lists of one submission."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wasmetal.device.base import CommandList, Device, MemoryKind, Submission
from wasmetal.errors import DeviceError, DeviceLostError
from wasmetal.models.architectures.network import Inputs, Network
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.lm.kv_cache import KVCache
from wasmetal.ops import ALIGNMENT, DType, Recorder, Tensor, batch_shape, copy, sequences_shape

ROWS = (1, 64, 512)
"""Shape classes: the forward pass is recorded once for each; a batch takes the smallest that its rows fit."""
SEQUENCES = 64
"""Most sequences in a batch."""
IN_FLIGHT = 2
"""Most forward passes in flight at once: while one runs, the next is prepared."""

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

    def __init__(self, device: Device, network: Network, cache: KVCache, buffers: BufferGroup, pages: int):
        self.submission: Submission | None = None
        """The latest submission."""
        self._device = device
        self._network = network
        self._cache = cache
        self._lists: dict[int, CommandList] = {}
        self._version = cache.version
        """Of the cache with which the lists were recorded."""
        shapes = {"ids": (ROWS[-1],), "batch": batch_shape(ROWS[-1]), "sequences": sequences_shape(SEQUENCES, pages)}
        sizes = {name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}
        starts = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes.values())]).tolist()
        self._buffer = buffers.allocate(starts[-1], MemoryKind.SHARED)
        self._copy = None if device.info.unified else buffers.allocate(starts[-1])
        """What kernels read, if the inputs are far from the device: they are needed in every layer."""
        written, read = (
            [Tensor(buffer, start, DType.I32, shape) for shape, start in zip(shapes.values(), starts, strict=False)]
            for buffer in (self._buffer, self._copy or self._buffer)
        )
        self._ids, self._batch, self._sequences = (tensor.numpy() for tensor in written)
        self._inputs = Inputs(*read)

    def write(self, segments: Sequence[Segment]) -> None:
        """Write the inputs of the next submission: rows of up to SEQUENCES sequences, at most ROWS[-1] in all."""
        row = 0
        for number, segment in enumerate(segments):
            count = len(segment.tokens)
            self._ids[row : row + count] = segment.tokens
            self._batch[1 + row : 1 + row + count, 0] = range(segment.position, segment.position + count)
            self._batch[1 + row : 1 + row + count, 1] = number
            self._sequences[number, 0] = segment.position + count
            self._sequences[number, 1 : 1 + len(segment.pages)] = segment.pages
            row += count
        self._batch[0, 0] = row

    def body(self, rows: int) -> CommandList:
        """The list that computes everything but the heads for a batch of ``rows`` rows."""
        if self._version != self._cache.version:
            self.close()
            self._version = self._cache.version
        fitting = next(size for size in ROWS if size >= rows)
        if fitting not in self._lists:
            sequences = self._inputs.sequences
            commands = self._device.record()
            rec = Recorder(self._device.info, commands)
            if self._copy:
                used = sequences.rows(0, min(fitting, SEQUENCES))
                words = -(-(used.offset + used.nbytes) // ALIGNMENT) * ALIGNMENT // 4
                copy(rec, *(Tensor(buffer, 0, DType.I32, (words,)) for buffer in (self._buffer, self._copy)))
            inputs = Inputs(self._inputs.ids.rows(0, fitting), self._inputs.batch.rows(0, 1 + fitting), sequences)
            self._network.body(rec, inputs, self._cache.layers)
            commands.finish()
            self._lists[fitting] = commands
        return self._lists[fitting]

    def close(self) -> None:
        """Release the lists. Idempotent."""
        for commands in self._lists.values():
            commands.close()
        self._lists = {}


class Passes:
    """The passes of one model, for any thread."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self._passes = tuple(passes)
        self._free = list(passes)
        self._changed = threading.Condition()

    def take(self, seconds: float) -> Pass | None:
        """A pass for the caller alone, with nothing in flight; None if there is none for about ``seconds``.

        Raises DeviceLostError if the device does not come back from a pass that was given up.
        """
        with self._changed:
            if not self._free:
                self._changed.wait(seconds)
            given_up = None
            for each in self._free:
                if each.submission is None or not each.submission.pending:
                    self._free.remove(each)
                    return each
                given_up = each.submission
        if given_up is not None:
            try:
                given_up.wait(seconds)
            except DeviceLostError:
                raise
            except DeviceError:  # it is pending still, or its error concerns whoever gave it up
                pass
        return None

    def put_back(self, taken: Pass) -> None:
        """Let others take the pass, once its submission has ended."""
        with self._changed:
            self._free.insert(0, taken)  # the next token then uses the same buffers
            self._changed.notify()

    def close(self) -> None:
        """Release the passes' lists. Idempotent."""
        for each in self._passes:
            each.close()
