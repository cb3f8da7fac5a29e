"""A guest's standard output and error, on their way to the host."""

from __future__ import annotations

import codecs
import contextlib
import errno
import queue
from collections.abc import Callable, Iterator

from wasmetal.host import wasi
from wasmetal.host.interrupt import Interrupt

_LOOK = 0.1
"""Seconds of waiting between two checks that the other side is still there."""
_PIECES = 64
"""How many writes may be queued for the reader before the guest has to wait."""


class Output:
    """A standard stream of a guest: passes on what is written, and stops the guest if that fails."""

    def __init__(self, interrupt: Interrupt, target: wasi.Output | None) -> None:
        self.target = target
        self._interrupt = interrupt

    def __call__(self, data: bytes) -> int:
        """Returns the number of bytes taken, or a negative errno."""
        try:
            if self.target:
                self.target(data)
        except BaseException as error:
            self._interrupt.stop(error)
            return -errno.EIO
        return len(data)


class Pipe:
    """A guest's output, read on another thread. A guest that gets far ahead of the reader waits for it."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_PIECES)
        self.unread = False
        """Set once nobody reads any more: what is written is then dropped."""

    def write(self, piece: bytes) -> None:
        """Called on the guest's thread with its output."""
        while not self.unread:
            try:
                self._pieces.put(piece, timeout=_LOOK)
                break
            except queue.Full:
                self._interrupt.check()

    def finish(self) -> None:
        """Called on the guest's thread: nothing more will be written."""
        with contextlib.suppress(queue.Full):  # then the reader notices that the call has ended
            self._pieces.put_nowait(None)

    def pieces(self, alive: Callable[[], bool]) -> Iterator[bytes]:
        """Yield what is written until ``finish`` is called or ``alive`` returns False.

        ``alive`` is called from time to time, and may raise.
        """
        while (piece := self._next(alive)) is not None:
            yield piece

    def text(self, alive: Callable[[], bool]) -> Iterator[str]:
        """:meth:`pieces` as text. Bytes that are not UTF-8 are replaced."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in self.pieces(alive):
            if text := decoder.decode(piece):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def _next(self, alive: Callable[[], bool]) -> bytes | None:
        while True:
            over = not alive()  # checked first: what was written before the end must still be read
            try:
                return self._pieces.get(timeout=0 if over else _LOOK)
            except queue.Empty:
                if over:
                    return None
