"""The process of an isolated guest, as its parent sees it: asking for something, and waiting for the answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from wasmetal import errors
from wasmetal.counters import Counters
from wasmetal.errors import GuestError, LimitError, WasmetalError, printable
from wasmetal.host import wasi
from wasmetal.worker.channel import ChannelError, Header, Payload
from wasmetal.worker.process import WorkerProcess

GRACE_SECONDS = 5.0
"""Time after the guest's own limit on wall time at which its process is killed."""
_PATIENCE = 1.0
"""Time that a callback on another thread gets to end when the guest is closed."""
MOST_OUTPUT = 1 << 26
"""Most bytes that the guest writes, or an answer holds, in one message."""
_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, WasmetalError)
}


class GuestProcess:
    """A worker that runs :mod:`wasmetal.host.guest_worker`. It is not trusted: a guest may have taken it over."""

    def __init__(
        self, worker: WorkerProcess, outputs: Mapping[str, wasi.Output | None], wall_seconds: float | None
    ) -> None:
        """``outputs``: who receives "stdout" and "stderr". ``wall_seconds``: the guest's own limit."""
        self.worker = worker
        self.counters = Counters()
        """What the guest has caused up to the last answer."""
        self._outputs = outputs
        self._wall_seconds = wall_seconds
        self._reason: BaseException | None = None
        """Why the process was killed, or has ended."""
        self._closed = False
        self._busy = threading.Lock()
        """Held by the thread that has asked the process for something, until it has the answer."""
        self._waiting: int | None = None
        """That thread."""

    def close(self) -> None:
        """Kill the process, and release it. Idempotent."""
        self._closed = True
        self.kill(GuestError("the guest was closed"))
        # In a callback, the call that it belongs to releases the process.
        if self._waiting != threading.get_ident() and self._busy.acquire(timeout=_PATIENCE):
            self.worker.end()
            self._busy.release()

    def kill(self, reason: BaseException) -> None:
        """Kill the process, from any thread. The thread that waits for it raises the reason."""
        self._reason = self._reason or reason
        self.worker.kill()

    def complete(self, do: str, payload: Payload = b"", **arguments: Any) -> tuple[Any, bytearray]:
        """Have something done, and pass on what the guest writes meanwhile. Returns a JSON value, and bytes."""
        with self.asked(do, payload, **arguments) as receive:
            while "output" in (message := receive())[0]:
                self.pass_on(*message)
        return self.answer(*message)

    @contextmanager
    def asked(
        self, do: str, payload: Payload = b"", *, seconds: float = 0.0, most: int = MOST_OUTPUT, **arguments: Any
    ) -> Iterator[Callable[[], tuple[Header, bytearray]]]:
        """Have something done that may take ``seconds`` more than the guest. Gives a function that waits for a message.

        If the ``with`` block does not end well, or no message comes in time, the process is killed.
        """
        if not self._busy.acquire(blocking=False):
            raise GuestError("the guest is running already; a guest runs one call at a time")
        self._waiting = threading.get_ident()
        try:
            if self._closed:
                raise GuestError("the guest is closed")
            if self._reason:
                raise GuestError(f"the guest cannot go on after this: {self._reason}")
            wall = self._wall_seconds
            limit = math.inf if wall is None else time.monotonic() + wall + seconds

            def receive() -> tuple[Header, bytearray]:
                # Measured from now if the reader has been slow, since the message may have waited here.
                until = max(limit, time.monotonic()) + GRACE_SECONDS
                try:
                    return self.worker.channel.receive(most, until=None if until == math.inf else until)
                except TimeoutError:
                    raise LimitError(f"limit reached: {wall:g} seconds of wall time") from None

            self.worker.channel.send({"do": do, **arguments}, payload)
            yield receive
        except ChannelError as error:
            self.kill(self._reason or GuestError(f"the guest's process {self.worker.post_mortem(error)}"))
            assert self._reason
            raise self._reason from None
        except GeneratorExit:
            self.kill(GuestError("the guest's output is no longer read"))
            raise
        except BaseException as error:
            self.kill(error)
            raise
        finally:
            if self._reason:
                self.worker.end()
            self._waiting = None
            self._busy.release()

    def answer(self, header: Header, result: bytearray) -> tuple[Any, bytearray]:
        """Take what the process answers. Raises the guest's error."""
        try:
            self.counters = Counters(**header["counters"])
            kind, text = (header["error"], printable(header["message"])) if "error" in header else (None, "")
            value = None if kind else header["value"]
        except (KeyError, TypeError):
            raise no_answer() from None
        if kind is None:
            return value, result
        raise _ERRORS.get(str(kind), GuestError)(text)

    def pass_on(self, header: Header, data: bytearray) -> None:
        """Give what the guest has written to whom it is meant for."""
        if target := self._outputs.get(str(header["output"])):
            target(bytes(data))


def no_answer() -> GuestError:
    """The error that the process did not answer as it should."""
    return GuestError("the guest's process sent what is no answer")
