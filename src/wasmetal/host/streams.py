"""A guest's standard output and error, on their way to the host."""

from __future__ import annotations

import codecs
import contextlib
import errno
import queue
import threading
from collections.abc import Iterator

from wasmetal.host import wasi
from wasmetal.host.interrupt import Interrupt

_LOOK = 0.1
"""Seconds of waiting after which either side looks whether the other is still there."""
_PIECES = 64
"""Writes of a guest that may wait for a reader; then the guest waits."""


class Output:
    """A standard stream of a guest: passes on what is written, and stops the guest if that fails."""

    def __init__(self, interrupt: Interrupt, target: wasi.Output | None) -> None:
        self.target = target
        self._interrupt = interrupt

    def __call__(self, data: bytes) -> int:
        """For Wasmtime: the bytes taken, or a negative errno."""
        try:
            if self.target:
                self.target(data)
        except BaseException as error:
            self._interrupt.stop(error)
            return -errno.EIO
        return len(data)


class TextPipe:
    """What a guest writes, read as text on another thread. A guest that is ahead of the reader by far waits for it."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_PIECES)

    def write(self, piece: bytes) -> None:
        """For the guest's thread: an output's target."""
        while True:
            try:
                return self._pieces.put(piece, timeout=_LOOK)
            except queue.Full:
                self._interrupt.check()

    def finish(self) -> None:
        """For the guest's thread: nothing more will be written."""
        with contextlib.suppress(queue.Full):  # then the reader finds that the call has ended
            self._pieces.put_nowait(None)

    def read(self, ended: threading.Event) -> Iterator[str]:
        """The text, until ``finish`` or until ``ended`` is set; bytes that are not UTF-8 are replaced."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while (piece := self._next(ended)) is not None:
            if text := decoder.decode(piece):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def _next(self, ended: threading.Event) -> bytes | None:
        while True:
            over = ended.is_set()  # asked first: what was written before the end is still to be read
            try:
                return self._pieces.get(timeout=0 if over else _LOOK)
            except queue.Empty:
                if over:
                    return None
