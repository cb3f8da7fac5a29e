"""A command buffer being filled: with kernels, through an encoder, and with what encodes itself."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from wasmetal.device.metal.api import mtl


class Stream:
    """Passes over a command buffer, each of which begins when all before it have ended.

    Buffers are untracked, so Metal by itself would let passes overlap: an event keeps them apart, the only thing that
    also orders a pass whose encoder is another's. Its ``numbers`` only grow, for as long as there is the event.
    """

    def __init__(self, commands: Any, event: Any, numbers: Iterator[int]) -> None:
        self._commands = commands
        self._event = event
        self._numbers = numbers
        self._encoder: Any = None
        self._used = False

    def encoder(self) -> Any:
        """An ``MTLComputeCommandEncoder`` that runs dispatches concurrently: the open one, or else a new one."""
        if self._encoder is None:
            commands = self.commands()
            self._encoder = commands.computeCommandEncoderWithDispatchType_(mtl.MTLDispatchTypeConcurrent)
        return self._encoder

    def commands(self) -> Any:
        """The command buffer itself, for one pass."""
        self.end()
        if self._used:
            number = next(self._numbers)
            self._commands.encodeSignalEvent_value_(self._event, number)
            self._commands.encodeWaitForEvent_value_(self._event, number)
        self._used = True
        return self._commands

    def barrier(self) -> None:
        """Order all that follows behind all before."""
        if self._encoder is not None:
            self._encoder.memoryBarrierWithScope_(mtl.MTLBarrierScopeBuffers)

    def end(self) -> None:
        """Close the encoder that is open: Metal ends the process over one that is dropped open."""
        if self._encoder is not None:
            encoder, self._encoder = self._encoder, None
            encoder.endEncoding()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end()
