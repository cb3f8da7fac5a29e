"""A component's standard streams.

Wasmtime writes them on threads of its own. A callback in Python must not be called there, nor dropped: where the
process is ending meanwhile, Python ends the thread, and Rust then aborts the process. So they are pipes, which we read.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import wasmtime

from wasmetal.host.streams import Output
from wasmetal.host.threads import HostThread

_PIECE = 1 << 16


class Pipes:
    """The pipes of standard output and error, on the way to the host."""

    def __init__(self, config: wasmtime.WasiConfig, stdout: Output, stderr: Output) -> None:
        self._outputs: dict[int, Output] = {}
        """By the end of the pipe that is read."""
        self._open: list[int] = []
        self._stdout, config.stdout_file = self._pipe(stdout)
        _, config.stderr_file = self._pipe(stderr)

    def write(self, data: bytes) -> object:
        """Add to standard output, behind what the component has written."""
        while data:
            data = data[os.write(self._stdout, data) :]
        return None

    @contextmanager
    def passing_on(self) -> Iterator[None]:
        """A ``with`` block around a run, at whose end everything that was written has been passed on."""
        waiting, ended = os.pipe()
        thread = HostThread(lambda: self._pass_on(waiting))
        try:
            thread.start()
            try:
                yield
            finally:
                os.write(ended, b"\0")
                thread.wait(threading.TIMEOUT_MAX)
        finally:
            os.close(waiting)
            os.close(ended)

    def close(self) -> None:
        """Close them. Idempotent."""
        while self._open:
            os.close(self._open.pop())

    def _pipe(self, output: Output) -> tuple[int, str]:
        read, write = os.pipe()
        self._open += (read, write)
        os.set_blocking(read, False)
        self._outputs[read] = output
        return write, f"/dev/fd/{write}"

    def _pass_on(self, ended: int) -> None:
        over = False
        while not over:
            over = ended in select.select([*self._outputs, ended], [], [])[0]
            for read, output in self._outputs.items():
                with suppress(BlockingIOError):
                    while data := os.read(read, _PIECE):
                        output(data)
