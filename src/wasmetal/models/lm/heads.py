"""Heads: the command lists that write the logits of one row of a batch."""

from __future__ import annotations

from wasmetal.device.base import CommandList, Device, MemoryKind, Submission
from wasmetal.models.architectures.network import Network
from wasmetal.ops import ALIGNMENT, DType, Recorder, Tensor


class Head:
    """A recorded list that writes the logits after one row to one tensor."""

    def __init__(self, device: Device, network: Network, logits: Tensor) -> None:
        """Record it. Raises OpError if ``logits`` is not f32 [vocab_size]; OutOfDeviceMemoryError."""
        row = Tensor(device.allocate(ALIGNMENT, MemoryKind.SHARED), 0, DType.I32, (1,))
        self.logits = logits
        self.commands: CommandList = device.record()
        self.submission: Submission | None = None
        """The latest submission."""
        self._buffer = row.buffer
        self._row = row.numpy()
        try:
            network.head(Recorder(device.info, self.commands), row, logits)
            self.commands.finish()
        except BaseException:
            self.close()
            raise

    def select(self, row: int) -> None:
        """Choose the row whose logits the next submission writes."""
        self._row[0] = row

    @property
    def pending(self) -> bool:
        """Whether the latest submission has not ended yet."""
        return self.submission is not None and self.submission.pending

    def close(self) -> None:
        """Release the list. Idempotent."""
        self.commands.close()
        self._buffer.close()
