"""Loading ONNX models.

A model from a guest's own bytes is hostile. It gets no files: external initializers are looked for in an empty folder.
It gets one thread. Nothing of it is run while it is loaded, because loading is stopped between two passes over it at
best.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import onnxruntime

from wasmetal.device.cpu.library import thread_count
from wasmetal.memory.trim import trim
from wasmetal.nn.backend import Config, Context, Services, Source
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.onnx import foreign
from wasmetal.nn.onnx.context import OnnxContext
from wasmetal.nn.onnx.memory import OnnxMemory

log = logging.getLogger("wasmetal.nn")

PROVIDERS = ["CPUExecutionProvider"]
FOLDER = "session.model_external_initializers_file_folder_path"
_FATAL = 4
"""Log level of ONNX Runtime: a guest's model could write as many errors as it likes to standard error."""
_COPIES = 2
"""How many times the model's bytes a session is charged for: it has the weights, and many of them once more, in the
order that its kernels read. (Measured: up to 1.9 times for a model of convolutions and attention.)"""
_LONG = ["ConstantFolding"]
"""Optimizers that run parts of a model while it is loaded, which cannot be stopped."""
_IN_MEMORY = b"_ORT_MEM_ADDR_"
"""Part of the name that ONNX Runtime itself gives to external data at an address of this process."""
_ORT_FORMAT = b"ORTM"
"""At byte 4 of a model in ONNX Runtime's own format, which it checks less than ONNX."""


class OnnxBackend:
    """Sessions of ONNX Runtime."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._memory = OnnxMemory(services)

    def load(self, source: Source, config: Config) -> OnnxGraph:
        """Load a model. Charges for its weights, and what is allocated for it.

        Options of guests are ignored; grants can give ``threads``.
        """
        own = source.model if isinstance(source.model, bytes) else None
        if own is not None and (_IN_MEMORY in own or own[4:8] == _ORT_FORMAT):
            raise NnRefusal(NnErrno.INVALID_ENCODING, "an ONNX model is expected that names no memory of the process")
        size = Path(str(source.model)).stat().st_size if own is None else len(own)
        nbytes = _COPIES * size + (0 if own is None else foreign.check(own))
        options = session_options(_threads(source) if own is None else 1)
        folder: AbstractContextManager[str] = tempfile.TemporaryDirectory() if own is not None else nullcontext("")
        self._memory.charge(nbytes)
        before = self._memory.in_use
        try:
            with (
                folder as empty,
                self._services.stoppable(lambda: options.set_load_cancellation_flag(True)),
                self._memory.limited(),
            ):
                self._memory.adopt(options)
                if own is not None:
                    options.add_session_config_entry(FOLDER, empty)
                given = str(source.model) if own is None else own
                session = onnxruntime.InferenceSession(
                    given, options, providers=PROVIDERS, disabled_optimizers=None if own is None else _LONG
                )
        except BaseException as error:
            self._services.charge(-nbytes)
            self._memory.trim()
            if type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError | MemoryError):
                raise self._damaged(source, error) from None
            raise
        # What was allocated is charged by now, of which some are weights.
        surplus = min(self._memory.in_use - before, size)
        self._services.charge(-surplus)
        return OnnxGraph(session, nbytes - surplus, self._services, self._memory)

    def close(self) -> None:
        """Release what is kept for later runs."""
        self._memory.close()

    def _damaged(self, source: Source, error: BaseException) -> NnRefusal:
        reason = " ".join(str(error).split())[:300]
        if not isinstance(source.model, bytes):
            log.warning("%s: %s", source.name, reason)  # the host's own file
        return NnRefusal(NnErrno.INVALID_ENCODING, f"{source.name}: {reason}")


class OnnxGraph:
    """A session."""

    holds_tensors = True

    def __init__(self, session: Any, nbytes: int, services: Services, memory: OnnxMemory) -> None:
        self._session = session
        self._nbytes = nbytes
        self._services = services
        self._memory = memory

    def configure(self, config: Config) -> None:
        """Nothing: there are no options."""

    def context(self) -> Context:
        """A new context."""
        if self._session is None:
            raise invalid("the graph was unloaded")
        return OnnxContext(self._session, self._services, self._memory)

    def close(self) -> None:
        """Release the session."""
        if self._session is not None:
            self._session = None
            self._services.charge(-self._nbytes)
            self._memory.trim()
            trim()


def session_options(threads: int | None = None) -> Any:
    """Options of a session, with as many threads as the CPU device has, unless given."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or thread_count()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return options


def _threads(source: Source) -> int:
    threads = source.options.get("threads", thread_count())
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise invalid(f"option 'threads' is {threads!r}; 1 to 1024 are possible")
    return threads
