"""Guests in a process of their own, so that whatever goes wrong there, in a driver too, costs one guest.

The process has its own device and models, and shares nothing with others: what it holds goes when it is killed.
"""

from __future__ import annotations

import codecs
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from wasmetal import errors
from wasmetal.counters import Counters
from wasmetal.device import Device
from wasmetal.errors import GuestError, LimitError, WasmetalError, printable
from wasmetal.forked import Origin
from wasmetal.host import wasi
from wasmetal.host.grants import Dir
from wasmetal.host.limits import Limits
from wasmetal.host.program import Program
from wasmetal.host.wasm import exited
from wasmetal.worker.channel import ChannelError, Header, Payload
from wasmetal.worker.confinement import DEVICES
from wasmetal.worker.process import WorkerProcess

if TYPE_CHECKING:
    from wasmetal.models.loaded import LoadedModel

HOST_BYTES = 1 << 30
"""Memory that the process may take, beyond the guest's limits and what it has once models are loaded: for the compiled
code, the runtime's tables, and what host functions need."""
SETUP_SECONDS = 300.0
"""Longest time that opening the device and loading the models may take."""
GRACE_SECONDS = 5.0
"""Time after the guest's own limit on wall time at which its process is killed."""
_PATIENCE = 1.0
"""Time that a callback on another thread gets to end when the guest is closed."""
_OUTPUT = 1 << 26
"""Most bytes that the guest writes, or an answer holds, in one message."""
_KEPT = (
    *("AMD_", "ANV_", "CUDA_", "DISABLE_LAYER", "DYLD_", "GALLIUM_", "INTEL_", "LIBGL_", "LP_", "LVP_", "MESA_"),
    *("METAL_", "MTL_", "NVIDIA_", "OMP_", "OPENBLAS_", "RADV_", "VK_", "WASMETAL_", "XDG_", "__GL"),
    *("HOME", "LANG", "LC_", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ"),
)
"""How the names of environment variables begin that drivers and libraries read; others may hold secrets."""
_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, WasmetalError)
}


class IsolatedGuest:
    """What :class:`wasmetal.Guest` gives if ``isolation`` is "process". It has the same methods.

    ``stdout`` and ``stderr`` are called on the thread that runs the guest.
    """

    def __init__(
        self,
        module: Program | str | Path | bytes,
        *,
        device: str | Device | None = None,
        models: Mapping[str, str | Path | LoadedModel] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        dirs: Mapping[str, str | Path | Dir] | None = None,
        limits: Limits | None = None,
        trusted: bool = False,
        stdin: bytes | Literal["inherit"] = b"",
        stdout: wasi.Output | None = None,
        stderr: wasi.Output | None = None,
    ) -> None:
        """Raises what :class:`wasmetal.Guest` does, and GuestError for a device or a model that is open already."""
        self.exit_code: int | None = None
        self.counters = Counters()
        self._limits = limits or Limits()
        self._outputs = {"stdout": stdout, "stderr": stderr}
        self._reason: BaseException | None = None
        """Why the process was killed, or has ended."""
        self._closed = False
        self._origin = Origin("the guest")
        self._busy = threading.Lock()
        """Held by the thread that has asked the process for something, until it has the answer."""
        self._waiting: int | None = None
        """That thread."""
        if not (device is None or isinstance(device, str)):
            raise GuestError("an isolated guest opens a device for itself; name it, for example device='vulkan'")
        for name, model in (models or {}).items():
            if not isinstance(model, str | Path):
                raise GuestError(f"an isolated guest loads models for itself; give the name or path of model {name!r}")
        program = module if isinstance(module, Program) else Program(module, trusted=trusted)
        given = {name: each if isinstance(each, Dir) else Dir(each) for name, each in (dirs or {}).items()}
        try:
            self._worker = WorkerProcess(
                "wasmetal.host.guest_worker",
                {name: value for name, value in os.environ.items() if name.startswith(_KEPT)},
                files=True,
                writable=[*DEVICES, *(os.path.abspath(each.path) for each in given.values() if not each.read_only)],
                stdin=stdin == "inherit",
            )
        except WasmetalError as error:
            raise GuestError(str(error)) from error
        code = program.serialize()
        try:
            self._complete(
                "create",
                code + (b"" if stdin == "inherit" else stdin),
                seconds=SETUP_SECONDS,
                name=program.name,
                compiled=len(code),
                device=device,
                models={name: str(source) for name, source in (models or {}).items()},
                args=[*args],
                env=dict(env or {}),
                dirs={name: (str(each.path), each.read_only) for name, each in given.items()},
                limits=asdict(self._limits),
                inherit=stdin == "inherit",
                memory=HOST_BYTES + self._limits.memory_bytes + self._limits.device_bytes,
            )
        except BaseException:
            self.close()
            raise

    def run(self) -> int:
        """See :meth:`wasmetal.Guest.run`."""
        self.exit_code = code = _exit_code(self._complete("run")[0])
        return code

    def stream(self) -> Iterator[str]:
        """See :meth:`wasmetal.Guest.stream`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with self._asked("run") as receive:
            while output := (message := receive())[0].get("output"):
                if output != "stdout":
                    self._pass_on(*message)
                elif text := decoder.decode(message[1]):
                    yield text
        self.exit_code = _exit_code(self._answer(*message)[0])
        if text := decoder.decode(b"", final=True):
            yield text
        if self.exit_code:
            raise exited(self.exit_code)

    def call(self, name: str, *args: int | float) -> Any:
        """See :meth:`wasmetal.Guest.call`. Arguments and results must be numbers; if not, GuestError is raised."""
        if not all(isinstance(each, int | float) for each in args):
            raise GuestError(f"an argument of {name!r} is no number, and cannot reach the guest's process")
        return self._complete("call", name=name, values=args)[0]

    def read(self, address: int, nbytes: int) -> bytes:
        """See :meth:`wasmetal.Guest.read`."""
        return bytes(self._complete("read", most=max(nbytes, _OUTPUT), address=address, nbytes=nbytes)[1])

    def write(self, address: int, data: bytes) -> None:
        """See :meth:`wasmetal.Guest.write`."""
        self._complete("write", data, address=address)

    def stop(self) -> None:
        """See :meth:`wasmetal.Guest.stop`."""
        self._kill(GuestError("the guest was stopped"))

    def close(self) -> None:
        """Kill the process. Idempotent; nothing happens in a process forked since."""
        if not self._origin.here:
            return
        self._closed = True
        self._kill(GuestError("the guest was closed"))
        # In a callback, the call that it belongs to releases the process.
        if self._waiting != threading.get_ident() and self._busy.acquire(timeout=_PATIENCE):
            self._worker.end()
            self._busy.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_worker") and self._origin.here:
            self._worker.end()

    def _kill(self, reason: BaseException) -> None:
        """Kill the process, from any thread. The thread that waits for it raises the reason."""
        self._reason = self._reason or reason
        self._worker.kill()

    def _complete(self, do: str, payload: Payload = b"", **arguments: Any) -> tuple[Any, bytearray]:
        """Have something done, and pass on what the guest writes meanwhile. Returns a JSON value, and bytes."""
        with self._asked(do, payload, **arguments) as receive:
            while "output" in (message := receive())[0]:
                self._pass_on(*message)
        return self._answer(*message)

    @contextmanager
    def _asked(
        self, do: str, payload: Payload = b"", *, seconds: float = 0.0, most: int = _OUTPUT, **arguments: Any
    ) -> Iterator[Callable[[], tuple[Header, bytearray]]]:
        """Have something done that may take ``seconds`` more than the guest. Gives a function that waits for a message.

        If the ``with`` block does not end well, or no message comes in time, the process is killed.
        """
        self._origin.check()
        if not self._busy.acquire(blocking=False):
            raise GuestError("the guest is running already; a guest runs one call at a time")
        self._waiting = threading.get_ident()
        try:
            if self._closed:
                raise GuestError("the guest is closed")
            if self._reason:
                raise GuestError(f"the guest cannot go on after this: {self._reason}")
            wall = self._limits.wall_seconds
            limit = math.inf if wall is None else time.monotonic() + wall + seconds

            def receive() -> tuple[Header, bytearray]:
                # Measured from now if the reader has been slow, since the message may have waited here.
                until = max(limit, time.monotonic()) + GRACE_SECONDS
                try:
                    return self._worker.channel.receive(most, until=None if until == math.inf else until)
                except TimeoutError:
                    raise LimitError(f"limit reached: {wall:g} seconds of wall time") from None

            self._worker.channel.send({"do": do, **arguments}, payload)
            yield receive
        except ChannelError as error:
            self._kill(self._reason or GuestError(f"the guest's process {self._worker.post_mortem(error)}"))
            assert self._reason
            raise self._reason from None
        except GeneratorExit:
            self._kill(GuestError("the guest's output is no longer read"))
            raise
        except BaseException as error:
            self._kill(error)
            raise
        finally:
            if self._reason:
                self._worker.end()
            self._waiting = None
            self._busy.release()

    def _answer(self, header: Header, result: bytearray) -> tuple[Any, bytearray]:
        """Take what the process answers. Raises the guest's error."""
        try:
            self.counters = Counters(**header["counters"])
            kind, text = (header["error"], printable(header["message"])) if "error" in header else (None, "")
            value = None if kind else header["value"]
        except (KeyError, TypeError):
            raise _no_answer() from None
        if kind is None:
            return value, result
        raise _ERRORS.get(str(kind), GuestError)(text)

    def _pass_on(self, header: Header, data: bytearray) -> None:
        """Give what the guest has written to whom it is meant for."""
        if target := self._outputs.get(str(header["output"])):
            target(bytes(data))


def _exit_code(value: Any) -> int:
    if not isinstance(value, int):
        raise _no_answer()
    return value


def _no_answer() -> GuestError:
    return GuestError("the guest's process sent what is no answer")
