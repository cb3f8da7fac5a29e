"""Guests in a process of their own, so that whatever goes wrong there, in a driver too, costs one guest.

The process has its own device and models, and shares nothing with others: what it holds goes when it is killed.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmetal.closing import Closing
from wasmetal.counters import Counters
from wasmetal.device import Device
from wasmetal.errors import GuestError, WasmetalError
from wasmetal.forked import Origin
from wasmetal.host import wasi
from wasmetal.host.grants import Dir
from wasmetal.host.guest_process import MOST_OUTPUT, GuestProcess, no_answer
from wasmetal.host.limits import Limits
from wasmetal.host.nn.grants import Given, NnModel
from wasmetal.host.program import Program
from wasmetal.host.wasm import exited
from wasmetal.worker.confinement import DEVICES
from wasmetal.worker.process import WorkerProcess

if TYPE_CHECKING:
    from wasmetal.models.loaded import LoadedModel

HOST_BYTES = 1 << 30
"""Memory that the process may take, beyond the guest's limits and what it has once models are loaded: for the compiled
code, the runtime's tables, and what host functions need."""
SETUP_SECONDS = 300.0
"""Longest time that opening the device and loading the models may take."""
_KEPT = (
    *("AMD_", "ANV_", "CUDA_", "DISABLE_LAYER", "DYLD_", "GALLIUM_", "INTEL_", "LIBGL_", "LP_", "LVP_", "MESA_"),
    *("METAL_", "MTL_", "NVIDIA_", "OMP_", "OPENBLAS_", "RADV_", "VK_", "WASMETAL_", "XDG_", "__GL"),
    *("HOME", "LANG", "LC_", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ"),
)
"""How the names of environment variables begin that drivers and libraries read; others may hold secrets."""


class IsolatedGuest(Closing):
    """What :class:`wasmetal.Guest` gives if ``isolation`` is "process". It has the same methods.

    ``stdout`` and ``stderr`` are called on the thread that runs the guest.
    """

    def __init__(
        self,
        module: Program | str | Path | bytes,
        *,
        device: str | Device | None = None,
        models: Mapping[str, str | Path | LoadedModel] | None = None,
        loading: Mapping[str, Any] | None = None,
        nn: Given | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        dirs: Mapping[str, str | Path | Dir] | None = None,
        limits: Limits | None = None,
        trusted: bool = False,
        stdin: wasi.Input = b"",
        stdout: wasi.Output | None = None,
        stderr: wasi.Output | None = None,
    ) -> None:
        """Raises what :class:`wasmetal.Guest` does, and GuestError for a device or a model that is open already."""
        self.exit_code: int | None = None
        self._origin = Origin("the guest")
        limits = limits or Limits()
        if not (device is None or isinstance(device, str)):
            raise GuestError("an isolated guest opens a device for itself; name it, for example device='vulkan'")
        for_nn = {name: each if isinstance(each, NnModel) else NnModel(each) for name, each in (nn or {}).items()}
        for name, model in [*(models or {}).items(), *((name, each.source) for name, each in for_nn.items())]:
            if not isinstance(model, str | Path):
                raise GuestError(f"an isolated guest loads models for itself; give the name or path of model {name!r}")
        if callable(stdin):
            raise GuestError("an isolated guest's input is bytes, or 'inherit'")
        program = module if isinstance(module, Program) else Program(module, trusted=trusted)
        given = {name: each if isinstance(each, Dir) else Dir(each) for name, each in (dirs or {}).items()}
        try:
            worker = WorkerProcess(
                "wasmetal.host.guest_worker",
                {name: value for name, value in os.environ.items() if name.startswith(_KEPT)},
                files=True,
                writable=[*DEVICES, *(os.path.abspath(each.path) for each in given.values() if not each.read_only)],
                stdin=stdin == "inherit",
            )
        except WasmetalError as error:
            raise GuestError(str(error)) from error
        self._process = GuestProcess(worker, {"stdout": stdout, "stderr": stderr}, limits.wall_seconds)
        code = program.serialize()
        try:
            self._process.complete(
                "create",
                code + (b"" if stdin == "inherit" else stdin),
                seconds=SETUP_SECONDS,
                name=program.name,
                compiled=len(code),
                is_component=program.component is not None,
                device=device,
                models={name: str(source) for name, source in (models or {}).items()},
                loading=dict(loading or {}),
                nn={name: (str(each.source), dict(each.options)) for name, each in for_nn.items()},
                args=[*args],
                env=dict(env or {}),
                dirs={name: (str(each.path), each.read_only) for name, each in given.items()},
                limits=asdict(limits),
                inherit=stdin == "inherit",
                memory=HOST_BYTES + limits.memory_bytes + limits.device_bytes,
            )
        except BaseException:
            self.close()
            raise

    @property
    def counters(self) -> Counters:
        """See :meth:`wasmetal.Guest.counters`; as they were when the process last answered."""
        return self._process.counters

    def memory_map(self) -> None:
        """None: the memory is another process's."""

    def run(self) -> int:
        """See :meth:`wasmetal.Guest.run`."""
        self.exit_code = code = _exit_code(self._here().complete("run")[0])
        return code

    def stream(self) -> Iterator[str]:
        """See :meth:`wasmetal.Guest.stream`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with self._here().asked("run") as receive:
            while output := (message := receive())[0].get("output"):
                if output != "stdout":
                    self._process.pass_on(*message)
                elif text := decoder.decode(message[1]):
                    yield text
        self.exit_code = _exit_code(self._process.answer(*message)[0])
        if text := decoder.decode(b"", final=True):
            yield text
        if self.exit_code:
            raise exited(self.exit_code)

    def call(self, name: str, *args: int | float) -> Any:
        """See :meth:`wasmetal.Guest.call`. Arguments and results must be numbers; if not, GuestError is raised."""
        if not all(isinstance(each, int | float) for each in args):
            raise GuestError(f"an argument of {name!r} is no number, and cannot reach the guest's process")
        return self._here().complete("call", name=name, values=args)[0]

    def read(self, address: int, nbytes: int) -> bytes:
        """See :meth:`wasmetal.Guest.read`."""
        return bytes(self._here().complete("read", most=max(nbytes, MOST_OUTPUT), address=address, nbytes=nbytes)[1])

    def write(self, address: int, data: bytes) -> None:
        """See :meth:`wasmetal.Guest.write`."""
        self._here().complete("write", data, address=address)

    def stop(self) -> None:
        """See :meth:`wasmetal.Guest.stop`."""
        self._here().kill(GuestError("the guest was stopped"))

    def close(self) -> None:
        """Kill the process. Idempotent; nothing happens in a process forked since."""
        if self._origin.here:
            self._process.close()

    def __del__(self) -> None:
        if hasattr(self, "_process") and self._origin.here:
            self._process.worker.end()

    def _here(self) -> GuestProcess:
        """The process. Raises ForkedError if this one was forked since."""
        self._origin.check()
        return self._process


def _exit_code(value: Any) -> int:
    if not isinstance(value, int):
        raise no_answer()
    return value
