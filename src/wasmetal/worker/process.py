"""One worker process, as its parent sees it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakSet

from wasmetal.errors import WasmetalError, printable
from wasmetal.once import once
from wasmetal.resident import resident_bytes
from wasmetal.worker.channel import Channel, ChannelError, Header, Payload

_CODE = "import sys; sys.path[:] = sys.argv[2:]; from wasmetal.worker.child import main; main(int(sys.argv[1]))"
_KEPT = ("DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TZ")
ENFORCED = sys.platform == "linux"
"""Whether the system holds a process to RLIMIT_DATA: macOS ignores the limits of ``setrlimit``."""
_START_SECONDS = 60.0
_GRACE = 2.0
"""Seconds after its deadline in which a worker ends itself, should its parent not be there to do it."""
_LOOK = 0.05
"""Seconds between two looks at the memory of a process that the system does not limit."""
_OUT_OF_MEMORY = ("memory allocation of", "MemoryError", "bad_alloc")
"""What Rust, Python and C++ say before they end."""


class WorkerFailure(Exception):
    """A request was not answered. The message says why, as the predicate of a sentence whose subject is the request."""


class Refused(Exception):
    """The service refused a request. The message is the service's own."""


class WorkerProcess:
    """A process that runs a service. It ends when this process does, however that happens.

    One thread at a time may use it. Raises WasmetalError if it cannot be started.
    """

    def __init__(
        self,
        service: str,
        environment: Mapping[str, str],
        *,
        files: bool = False,
        writable: Sequence[str] = (),
        stdin: bool = False,
    ) -> None:
        """``service``: the module's name. ``files``, ``writable``: see :func:`wasmetal.worker.confinement.confine`.

        ``stdin``: whether the process has this one's standard input.
        """
        here, there = socket.socketpair()
        self.channel = Channel(here)
        try:
            with there:
                self._process = _starter().submit(_start, there, environment, stdin).result()
        except BaseException as error:
            here.close()
            if isinstance(error, OSError | RuntimeError):  # RuntimeError: no more threads, or Python is ending
                raise WasmetalError(f"cannot start a worker process: {error}") from error
            raise
        _living.add(self)
        try:
            until = time.monotonic() + _START_SECONDS
            self.channel.send({"service": service, "files": files, "writable": [*writable]}, until=until)
            self.channel.receive(0, until=until)
        except (ChannelError, TimeoutError) as error:
            raise WasmetalError(f"cannot start a worker process: it {self.post_mortem(error)}") from error
        except BaseException:
            self.end()
            raise

    def request(
        self, header: Header, payload: Payload, *, seconds: float, memory: int, most: int
    ) -> tuple[Header, bytearray]:
        """The service's answer, with a payload of at most ``most`` bytes. ``memory``: bytes more than it has now.

        Raises Refused, and WorkerFailure, after which (as after any other exception) the process is gone.
        """
        until = time.monotonic() + seconds
        message = {"header": header, "memory": memory, "seconds": seconds + _GRACE}
        try:
            self.channel.send(message, payload, until=until)
            if not ENFORCED:
                self._watch(until, memory)
            answer, result = self.channel.receive(most, until=until)
        except TimeoutError:
            self.end()
            raise WorkerFailure(f"takes more than {seconds:g} seconds") from None
        except (ChannelError, MemoryError) as error:
            said = self.post_mortem(error)
            if isinstance(error, MemoryError) or _exhausted(said):
                raise WorkerFailure(_too_much(memory)) from None
            raise WorkerFailure(f"failed: its process {said}") from None
        except BaseException:
            self.end()
            raise
        if "answer" in answer:
            return answer["answer"], result
        if "refused" in answer:
            raise Refused(printable(str(answer["refused"])))
        self.end()
        raise WorkerFailure(_too_much(memory))

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill the process. Any thread may do that; the one that uses the process then finds the channel closed."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process, and release what this one holds of it. Idempotent."""
        self._process.kill()
        self._release(None)

    def forget(self) -> None:
        """Called in a forked process: the worker is its parent's."""
        self.channel.close()

    def _watch(self, until: float, memory: int) -> None:
        """Wait for an answer. Raises MemoryError if the process takes too much memory meanwhile."""
        before = resident_bytes(self._process.pid)
        while time.monotonic() < until and not select.select([self.channel.socket], [], [], _LOOK)[0]:
            if resident_bytes(self._process.pid) > before + memory:
                raise MemoryError

    def post_mortem(self, error: Exception) -> str:
        """End the process, if it has not ended by itself; say how it ended, in its own last words."""
        try:
            said = self._release(1.0 if isinstance(error, ChannelError) else 0.0)
        except subprocess.TimeoutExpired:
            self.end()
            return f"did not answer: {error}"
        status = self._process.returncode
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        lines = [line.strip() for line in said.split("\n") if line.strip()]
        reason = next((line for line in lines if _exhausted(line)), lines[-1] if lines else "")
        return printable(f"{how}: {reason}" if reason else how)

    def _release(self, patience: float | None) -> str:
        """Wait for the end of the process, and close the channel. Returns what it wrote to its standard error."""
        said = b""
        if self._process.stderr and not self._process.stderr.closed:
            said = self._process.communicate(timeout=patience)[1]
        self.channel.close()
        return said.decode(errors="replace")


def _start(end: socket.socket, environment: Mapping[str, str], stdin: bool) -> subprocess.Popen[bytes]:
    """Start Python anew: a forked process would have locks that nobody releases, and this process's memory."""
    # Found wherever this process found them. No folder that stands for the current one, and no code in .pth files.
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CODE, str(end.fileno()), *path],
        stdin=None if stdin else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[end.fileno()],
        env=environment,
        start_new_session=True,  # Ctrl-C at a terminal is for this process
    )


@once
def _starter() -> ThreadPoolExecutor:
    """A thread that lasts: Linux ends a worker with the thread that started it (PR_SET_PDEATHSIG)."""
    return ThreadPoolExecutor(1, "worker-starter")


_living: WeakSet[WorkerProcess] = WeakSet()


def _after_fork() -> None:
    _starter.clear()
    for worker in list(_living):
        worker.forget()
    _living.clear()


os.register_at_fork(after_in_child=_after_fork)


def minimal_environment() -> dict[str, str]:
    """Environment variables for a worker that opens no files; others may hold secrets."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def _too_much(memory: int) -> str:
    return f"needs more than {memory >> 20} MiB of memory"


def _exhausted(line: str) -> bool:
    return any(sign in line for sign in _OUT_OF_MEMORY)
