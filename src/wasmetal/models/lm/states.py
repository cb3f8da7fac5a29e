"""The states of a text's tokens: what the logits are computed from, and what a vector of a text is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import CommandList, Device
from wasmetal.models.architectures.network import Network
from wasmetal.models.lm.shared import Shared
from wasmetal.ops import DType, Recorder, batch_shape


class State:
    """The row of the residual stream after one token, normed as for the logits.

    It is there when :meth:`Session.forward` returns.
    """

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: NDArray[np.float32] = np.zeros(0, np.float32)
        """f32 [embedding_length]."""


class States:
    """Computes the states of several rows of a pass."""

    def __init__(self, device: Device, network: Network, rows: int) -> None:
        """For up to ``rows`` rows. Raises OutOfDeviceMemoryError."""
        self._rows, self._batch = Shared(device, DType.I32, rows), Shared(device, DType.I32, *batch_shape(rows))
        self._out = Shared(device, DType.F32, rows, network.config.embedding_length)
        self._commands: CommandList = device.record()
        network.states(Recorder(device.info, self._commands), self._rows.tensor, self._out.tensor, self._batch.tensor)
        self._commands.finish()
        self._wanted: Sequence[State] = ()
        """Those that the latest submission gives."""

    def lists(self, wanted: Sequence[tuple[State, int]]) -> list[CommandList]:
        """The lists that give each of ``wanted`` its row of the pass."""
        self._batch.values[0, 0] = len(wanted)
        self._rows.values[: len(wanted)] = [row for _, row in wanted]
        self._wanted = [state for state, _ in wanted]
        return [self._commands]

    def forget(self) -> None:
        """Whoever wanted what the latest submission gives does not take it."""
        self._wanted = ()

    def collect(self) -> None:
        """Take what the latest submission, which has ended, has given."""
        for state, values in zip(self._wanted, self._out.values, strict=False):
            state.values = values.copy()
        self._wanted = ()

    def close(self) -> None:
        """Release the list and its memory. Idempotent."""
        self._commands.close()
        for each in (self._rows, self._batch, self._out):
            each.close()
