"""A command buffer being encoded: kernels go through its encoder, libraries encode passes themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from wasmetal.device.metal.api import mtl


class Stream:
    """The passes of a command buffer, each of which begins when all before it have ended.

    Buffers are untracked, so Metal would let passes overlap. An event orders them: fences and barriers do not
    reach into the encoders that libraries make. ``numbers`` gives the event's values, which must only ever grow.
    """

    def __init__(self, commands: Any, event: Any, numbers: Iterator[int]) -> None:
        self._commands = commands
        self._event = event
        self._numbers = numbers
        self._encoder: Any = None
        self._used = False

    def encoder(self) -> Any:
        """The open ``MTLComputeCommandEncoder``, or else a new one. It runs dispatches concurrently."""
        if self._encoder is None:
            commands = self.commands()
            self._encoder = commands.computeCommandEncoderWithDispatchType_(mtl.MTLDispatchTypeConcurrent)
        return self._encoder

    def commands(self) -> Any:
        """The command buffer, to encode a separate pass into."""
        self.close()
        if self._used:
            number = next(self._numbers)
            self._commands.encodeSignalEvent_value_(self._event, number)
            self._commands.encodeWaitForEvent_value_(self._event, number)
        self._used = True
        return self._commands

    def barrier(self) -> None:
        """Make all later dispatches wait for all earlier ones."""
        if self._encoder is not None:
            self._encoder.memoryBarrierWithScope_(mtl.MTLBarrierScopeBuffers)

    def close(self) -> None:
        """End the open encoder: Metal aborts the process if an encoder is released without endEncoding."""
        if self._encoder is not None:
            encoder, self._encoder = self._encoder, None
            encoder.endEncoding()


class Pass(Protocol):
    """Part of a command buffer, prepared once and encoded for every submission."""

    def encode(self, stream: Stream) -> None:
        """Encode it into a command buffer."""
