"""Heads: the command lists that write the logits of one row of a batch."""

from __future__ import annotations

from wasmetal.device.base import CommandList, Device, MemoryKind, Submission
from wasmetal.models.architectures.network import Network
from wasmetal.models.buffers import BufferGroup
from wasmetal.ops import ALIGNMENT, DType, Recorder, Tensor

_SLOTS = 256
"""Row numbers in a buffer: one page of them."""


class RowNumbers:
    """Places in shared memory for the numbers of rows, one for each head."""

    def __init__(self, buffers: BufferGroup) -> None:
        self._buffers = buffers
        self._free: list[Tensor] = []

    def take(self) -> Tensor:
        """A place of the caller's own, I32 [1]. Raises OutOfDeviceMemoryError."""
        if not self._free:
            slot = max(ALIGNMENT, self._buffers.device.info.offset_alignment)
            buffer = self._buffers.allocate(_SLOTS * slot, MemoryKind.SHARED)
            self._free = [Tensor(buffer, i * slot, DType.I32, (1,)) for i in range(_SLOTS)]
        return self._free.pop()

    def give_back(self, place: Tensor) -> None:
        """Release a place."""
        self._free.append(place)


class Head:
    """A recorded list that writes the logits after one row to one tensor."""

    def __init__(self, device: Device, network: Network, numbers: RowNumbers, logits: Tensor) -> None:
        """Record it. Raises OpError if ``logits`` is not f32 [vocab_size]; OutOfDeviceMemoryError."""
        self.logits = logits
        self.commands: CommandList = device.record()
        self.submission: Submission | None = None
        """The latest submission; None if nothing of it can still run."""
        self._numbers = numbers
        self._place = numbers.take()
        self._number = self._place.numpy()
        try:
            network.head(Recorder(device.info, self.commands), self._place, logits)
            self.commands.finish()
        except BaseException:
            self.close()
            raise

    def select(self, row: int) -> None:
        """Choose the row of the batch that the next submission takes."""
        self._number[0] = row

    def settle(self) -> None:
        """Wait for a submission that its user stopped waiting for."""
        if self.submission:
            self.submission.wait()
            self.submission = None

    def close(self) -> None:
        """Release the list."""
        self.commands.close()
        self._numbers.give_back(self._place)
