"""A guest: a WebAssembly module, what it was granted, and its run."""

from __future__ import annotations

import atexit
import codecs
import errno
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from weakref import WeakSet

import wasmtime

from wasmetal.counters import Counters
from wasmetal.device import Device, open_device
from wasmetal.errors import GuestError, GuestTrapError, LimitError, MemoryRefusedError
from wasmetal.host import abi, wasi
from wasmetal.host.calls import Call
from wasmetal.host.functions.gpu import Gpu
from wasmetal.host.functions.llm import Llm
from wasmetal.host.handles import Handles
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.limits import Account, Limits
from wasmetal.host.link import HostFunctions
from wasmetal.host.runtime import runtime
from wasmetal.host.wasm import compile_module, describe_trap, has_memory64, one_line, read_module
from wasmetal.memory import memory_refusals

if TYPE_CHECKING:
    from wasmetal.models import Model

T = TypeVar("T")

_TABLE_ELEMENTS = 1 << 20
_WAKE = 0.1
"""Seconds after which a main thread that waits looks for Ctrl-C: one that comes as it falls asleep does not wake it."""
_PATIENCE = 1.0
"""Seconds that a guest which was told to stop gets; only one that waits on standard input takes longer."""


class Guest:
    """A WebAssembly module in its sandbox.

    It can use one device, within its limits, and nothing else that is not given here. Use it as a context manager, or
    call :meth:`close`. Its code runs on a thread of its own, one call at a time; Ctrl-C stops it.
    """

    def __init__(
        self,
        module: str | Path | bytes,
        *,
        device: str | Device | None = None,
        models: Mapping[str, str | Path | Model] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        dirs: Mapping[str, str | Path] | None = None,
        limits: Limits | None = None,
        stdin: bytes | Literal["inherit"] = b"",
        stdout: wasi.Output | None = None,
        stderr: wasi.Output | None = None,
    ) -> None:
        """Load a module and instantiate it; nothing but a start function of its own runs yet.

        ``module``: a path, or the bytes, of a core module, binary or text.
        ``device``: as for :func:`open_device`, or an open one, which stays open. It is opened only where the module
        imports from wasmetal.
        ``models``: what the guest can open, by its name there: a model's name or path, or a loaded one on the same
        device, which stays loaded.
        ``args``: without the program's name.
        ``dirs``: host directories, readable and writable, by the guest's names for them.
        ``stdin``: bytes, or "inherit" for the process's own.
        ``stdout``, ``stderr``: called with the bytes that the guest writes, as it writes them, on the guest's thread.
        Where they are None, what is written is lost.

        Raises GuestError (no such file, not a module, an import that does not exist, a directory or model that cannot
        be granted), GuestTrapError, LimitError, MemoryRefusedError, DeviceError and ModelError.
        """
        limits = limits or Limits()
        name, code = read_module(module)
        self.exit_code: int | None = None
        """The exit code of the run, once it has ended."""
        self._call: Call[Any] | None = None
        self._closed = False
        self._lock = threading.Lock()
        """Held where a call begins and where the guest is taken apart."""
        self._account = Account(limits)
        self._cleanup = ExitStack()
        _open.add(self)
        engine = runtime().engine
        self._module = compile_module(engine, name, code)
        self._store = wasmtime.Store(engine)
        self._store.set_limits(
            memory_size=min(limits.memory_bytes, 2**63 - 1),
            memories=limits.memories,
            table_elements=_TABLE_ELEMENTS,
            instances=1,
        )
        self._interrupt = Interrupt(self._store, self._account)
        self._stdout = _Output(self._interrupt, stdout)
        try:
            self._store.set_wasi(
                wasi.configure(
                    args=[name, *args],
                    env=env or {},
                    dirs={guest: str(host) for guest, host in (dirs or {}).items()},
                    stdin=stdin,
                    stdout=self._stdout,
                    stderr=_Output(self._interrupt, stderr),
                )
            )
            linker = self._link(device, models or {})
            self._instance = self._enter(lambda: self._instantiate(linker))
        except BaseException:
            self.close()
            raise

    @property
    def counters(self) -> Counters:
        """What the guest has caused until now."""
        return self._account.counters

    def run(self) -> int:
        """Run the module's ``_start``, as a command; return its exit code.

        Raises GuestTrapError, LimitError, and what a callback for its output raised.
        """
        self.exit_code = self._enter(self._start)
        return self.exit_code

    def stream(self) -> Iterator[str]:
        """Run the module's ``_start`` and yield what it writes to standard output, as text, as it writes it.

        Stops the guest where the iterator is closed early. Raises what :meth:`run` does, and GuestError where the guest
        ends with an exit code other than 0.
        """
        pieces: queue.Queue[bytes | None] = queue.Queue(maxsize=64)

        def put(piece: bytes | None) -> None:
            while True:
                try:
                    return pieces.put(piece, timeout=_PATIENCE / 10)
                except queue.Full:
                    self._interrupt.check()

        def run() -> int:
            given, self._stdout.target = self._stdout.target, put
            try:
                return self._start()
            finally:
                self._stdout.target = given
                put(None)

        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        call = self._begin(run)
        try:
            while (piece := _next(pieces)) is not None:
                if text := decoder.decode(piece):
                    yield text
            if text := decoder.decode(b"", final=True):
                yield text
            self.exit_code = self._end(call)
        finally:
            self._abandon(call, GuestError("the guest's output is no longer read"))
        if self.exit_code:
            raise _exited(self.exit_code)

    def call(self, name: str, *args: int | float) -> Any:
        """Call an exported function. Raises GuestError if there is none or it exits, GuestTrapError, LimitError."""
        return self._enter(lambda: self._function(name)(self._store, *args))

    def read(self, address: int, nbytes: int) -> bytes:
        """A copy of so many bytes of the exported memory. Raises GuestError if they are not all inside of it."""
        return self._enter(lambda: bytes(self._memory(address, nbytes).read(self._store, address, address + nbytes)))

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes into the exported memory. Raises GuestError if they do not all fit into it there."""
        self._enter(lambda: self._memory(address, len(data)).write(self._store, data, address) if data else 0)

    def stop(self) -> None:
        """Stop the guest, from another thread; its run raises GuestError. It cannot be run again."""
        self._interrupt.stop(GuestError("the guest was stopped"))

    def close(self) -> None:
        """Stop the guest and release everything it held. Idempotent."""
        self._closed = True
        with self._lock:
            if self._call is None or self._abandon(self._call, GuestError("the guest was closed")):
                self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_cleanup"):
            self.close()

    def _link(self, device: str | Device | None, models: Mapping[str, str | Path | Model]) -> wasmtime.Linker:
        linker = wasmtime.Linker(self._store.engine)
        linker.define_wasi()
        linker.allow_shadowing = True
        # Wasmtime calls these functions and knows nothing of references: they must live as long as the store.
        self._functions = HostFunctions(runtime().creator, self._account, self._interrupt, has_memory64(self._module))
        self._cleanup.callback(self._store.close)
        clocks = wasi.Clocks(self._interrupt)
        self._functions.define(linker, wasi.MODULE, wasi.CLOCKS, clocks, count=False)
        if device is not None or models or any(each.module in abi.INTERFACES for each in self._module.imports):
            self._link_device(linker, *self._grant(device, models))
        return linker

    def _grant(
        self, device: str | Device | None, sources: Mapping[str, str | Path | Model]
    ) -> tuple[Device, dict[str, Model]]:
        """The device, and the models by name, opened and loaded where they are not yet."""
        if device is None:
            device = next((model.device for model in sources.values() if not isinstance(model, str | Path)), None)
        if device is None or isinstance(device, str):
            device = self._cleanup.enter_context(open_device(device))
        models = {}
        for name, source in sources.items():
            if not isinstance(source, str | Path):
                if source.device is not device:
                    raise GuestError(f"model {name!r} is on another device than the guest; load it on the guest's")
                models[name] = source
            else:
                from wasmetal.models import load_model  # noqa: PLC0415 (slow to import, and few guests need it)

                with self._account.metered(device):
                    models[name] = load_model(source, device)
                self._cleanup.callback(models[name].close)
        return device, models

    def _link_device(self, linker: wasmtime.Linker, device: Device, models: Mapping[str, Model]) -> None:
        handles = Handles(self._account.limits.handles, secrets.randbits(32))
        gpu = Gpu(self._account, handles, device, self._interrupt)
        self._cleanup.callback(gpu.close)
        llm = Llm(self._account, handles, device, models)
        self._cleanup.callback(llm.close)
        self._functions.define(linker, abi.GPU, abi.INTERFACES[abi.GPU], gpu, count=True)
        self._functions.define(linker, abi.LLM, abi.INTERFACES[abi.LLM], llm, count=True)

    def _instantiate(self, linker: wasmtime.Linker) -> wasmtime.Instance:
        limits = self._account.limits
        try:
            with memory_refusals():
                return linker.instantiate(self._store, self._module)
        except MemoryRefusedError as error:
            if "memory count" in str(error):
                raise LimitError(f"limit reached: {limits.memories} linear memories") from None
            if "exceeds memory limits" in str(error):
                raise LimitError(f"limit reached: {limits.memory_bytes} bytes of linear memory") from None
            raise

    def _function(self, name: str) -> wasmtime.Func:
        function = self._instance.exports(self._store).get(name)
        if not isinstance(function, wasmtime.Func):
            raise GuestError(f"the module exports no function {name!r}")
        return function

    def _memory(self, address: int, nbytes: int) -> wasmtime.Memory:
        memory = self._instance.exports(self._store).get("memory")
        if not isinstance(memory, wasmtime.Memory):
            raise GuestError("the module exports no memory named 'memory'")
        size = memory.data_len(self._store)
        if min(address, nbytes) < 0 or address + nbytes > size:
            raise GuestError(f"{nbytes} bytes at {address:#x} leave the guest's memory of {size} bytes")
        return memory

    def _start(self) -> int:
        try:
            self._function("_start")(self._store)
        except wasmtime.ExitTrap as exit:
            return exit.code
        return 0

    def _enter(self, function: Callable[[], T]) -> T:
        """Run guest code on its thread, to its end."""
        call = self._begin(function)
        try:
            return self._end(call)
        except BaseException as error:
            self._abandon(call, error)
            raise

    def _begin(self, function: Callable[[], T]) -> Call[T]:
        with self._lock:
            if self._closed:
                raise GuestError("the guest is closed")
            if self._call and not self._call.done.is_set():
                raise GuestError("the guest is running already; it can do one thing at a time")
            if self._interrupt.reason:
                raise GuestError(f"the guest cannot go on after this: {self._interrupt.reason}")
            self._account.start_clock()
            self._call = call = Call(function)
            call.start()
        return call

    def _end(self, call: Call[T]) -> T:
        """Wait for a call; turn what ended it, if not a return, into an error of ours."""
        while not call.done.wait(_WAKE):
            pass
        try:
            return call.outcome.result()
        except wasmtime.Trap as trap:
            raise self._interrupt.reason or GuestTrapError(describe_trap(trap)) from None
        except wasmtime.ExitTrap as exit:
            raise _exited(exit.code) from None
        except wasmtime.WasmtimeError as error:
            raise self._interrupt.reason or GuestError(one_line(error)) from None

    def _abandon(self, call: Call[Any], reason: BaseException) -> bool:
        """Have a call ended; False where it cannot be, as long as it waits for standard input."""
        if not call.done.is_set() and call is not threading.current_thread():
            self._interrupt.stop(reason)
            call.done.wait(_PATIENCE)
        return call.done.is_set()


_open: WeakSet[Guest] = WeakSet()


@atexit.register
def _close_all() -> None:
    """While Python can still be called back: Wasmtime's threads may not come with a guest's remains afterwards."""
    for guest in list(_open):
        guest.close()


class _Output:
    """A standard stream of a guest: passes on what is written; where that fails, the guest is stopped."""

    def __init__(self, interrupt: Interrupt, target: wasi.Output | None) -> None:
        self.target = target
        self._interrupt = interrupt

    def __call__(self, data: bytes) -> int:
        try:
            if self.target:
                self.target(data)
        except BaseException as error:
            self._interrupt.stop(error)
            return -errno.EIO
        return len(data)


def _exited(code: int) -> GuestError:
    return GuestError(f"the guest ended with exit code {code}; its standard error may say why")


def _next(pieces: queue.Queue[T]) -> T:
    while True:
        try:
            return pieces.get(timeout=_WAKE)
        except queue.Empty:
            pass
