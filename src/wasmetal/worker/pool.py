"""Worker processes of one service: started when needed, kept for the next request, replaced when they fail."""

from __future__ import annotations

import atexit
import os
import threading

from wasmetal.errors import WasmetalError
from wasmetal.worker.channel import Header, Payload
from wasmetal.worker.process import Refused, WorkerFailure, WorkerProcess, minimal_environment

_PROCESSES = 4
"""Most processes of a service; further requests wait."""
_KEPT = 2
"""Idle processes that are kept for the next requests."""
_LARGE = 8 << 20
"""Bytes of a request and its answer after which a process is not kept: it would keep the memory, too."""
_ADVICE = "if you trust it (trusted=True, --trusted), it is done without a worker process"


class WorkerPool:
    """Any thread may make requests. They are answered at the same time, by a process each.

    A forked process starts workers of its own.
    """

    def __init__(self, service: str, error: type[WasmetalError], threads: int = 1, advice: str = _ADVICE) -> None:
        """``service``: the module's name. ``error``: what requests raise, and ``advice``, what it says to do.

        ``threads``: for libraries in Rust.
        """
        self._service = service
        self._advice = advice
        # OpenBLAS starts its threads when NumPy is imported, which is before the process is confined.
        self._threads = {"OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": str(threads)}
        self._error = error
        self._start_anew()
        os.register_at_fork(after_in_child=self._start_anew)
        atexit.register(self._close)

    def request(
        self, what: str, header: Header, payload: Payload = b"", *, seconds: float, memory: int, most: int
    ) -> tuple[Header, bytearray]:
        """The service's answer to a request: a JSON object, and at most ``most`` bytes.

        ``what`` is done, as the subject of an error's sentence. It may take ``seconds``, and ``memory`` bytes more than
        the process has. Raises the pool's error if the service refuses or fails, or a worker cannot be started.
        """
        with self._room:
            worker = self._take()
            try:
                answer = worker.request(header, payload, seconds=seconds, memory=memory, most=most)
            except Refused as refusal:
                self._keep(worker)
                raise self._error(str(refusal)) from None
            except WorkerFailure as failure:
                raise self._error(f"{what} {failure}; {self._advice}") from None
            if len(payload) + len(answer[1]) < _LARGE:
                self._keep(worker)
            else:
                worker.end()
            return answer

    def _take(self) -> WorkerProcess:
        with self._lock:
            while self._idle:
                if (worker := self._idle.pop()).alive:
                    return worker
                worker.end()
        try:
            return WorkerProcess(self._service, minimal_environment() | self._threads)
        except WasmetalError as error:
            raise self._error(f"{error}; {self._advice}") from error

    def _keep(self, worker: WorkerProcess) -> None:
        with self._lock:
            if len(self._idle) < _KEPT:
                return self._idle.append(worker)
        return worker.end()

    def _start_anew(self) -> None:
        self._idle: list[WorkerProcess] = []
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(_PROCESSES)

    def _close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().end()
