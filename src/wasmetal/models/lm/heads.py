"""Heads: the command lists that write the logits after rows of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wasmetal.device.base import CommandList, Device, MemoryKind, Submission
from wasmetal.models.architectures.network import Network
from wasmetal.ops import ALIGNMENT, DType, Recorder, Tensor, batch_shape, embed


class Head:
    """Writes the logits after one row to one tensor."""

    def __init__(self, device: Device, network: Network, logits: Tensor) -> None:
        """Record it. Raises OpError if ``logits`` is not f32 [vocab_size]; OutOfDeviceMemoryError."""
        self._device = device
        self._row = _Numbers(device, 1)
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


class Heads:
    """Computes the logits after several rows at once, so that the vocabulary is read once for all of them."""

    def __init__(self, device: Device, network: Network, rows: int, least: int = 1) -> None:
        """For up to ``rows`` rows; ``least`` are computed, even if fewer are wanted. Raises OutOfDeviceMemoryError."""
        self._least = least
        shape = rows, network.config.vocab_size
        self.logits = Tensor(device.allocate(DType.F32.row_bytes(math.prod(shape))), 0, DType.F32, shape)
        self._rows, self._batch = _Numbers(device, rows), _Numbers(device, *batch_shape(rows))
        self._commands = device.record()
        network.head(Recorder(device.info, self._commands), self._rows.tensor, self.logits, self._batch.tensor)
        self._commands.finish()

    def lists(self, wanted: Sequence[tuple[Head, int]]) -> list[CommandList]:
        """The lists that give each of ``wanted`` the logits after its row of the pass."""
        self._batch.values[0, 0] = max(len(wanted), self._least)
        self._rows.values[: len(wanted)] = [row for _, row in wanted]
        for index, (head, _) in enumerate(wanted):
            head.select(index)
        return [self._commands, *(head.taking(self) for head, _ in wanted)]

    def close(self) -> None:
        """Release the lists and their memory. Idempotent."""
        self._commands.close()
        for each in (self._rows, self._batch):
            each.close()
        self.logits.buffer.close()


class _Numbers:
    """A few numbers in memory that the host and the device share."""

    def __init__(self, device: Device, *shape: int) -> None:
        nbytes = -(-4 * math.prod(shape) // ALIGNMENT) * ALIGNMENT
        self.tensor = Tensor(device.allocate(nbytes, MemoryKind.SHARED), 0, DType.I32, shape)
        self.values = self.tensor.numpy()

    def close(self) -> None:
        """Release the memory. Idempotent."""
        self.tensor.buffer.close()
