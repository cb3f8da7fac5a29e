"""A guest: an instance of a program, what it was granted, and its run."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import wasmtime

from wasmetal import wasmtime_c
from wasmetal.closing import Closing
from wasmetal.counters import Counters
from wasmetal.device import Device
from wasmetal.errors import GuestError, LimitError, MemoryCountError, MemorySizeError, setting_up
from wasmetal.host import abi, unreleased, wasi
from wasmetal.host.abi.nn import NN
from wasmetal.host.account import Account
from wasmetal.host.component import instance as component
from wasmetal.host.component.instance import INSTANCES, ComponentInstance
from wasmetal.host.component.nn import ComponentNn
from wasmetal.host.component.pipes import Pipes
from wasmetal.host.descriptors import Descriptors, Input
from wasmetal.host.functions.actor import NoMailbox
from wasmetal.host.functions.gpu import Gpu
from wasmetal.host.functions.llm import Llm
from wasmetal.host.functions.nn import Nn
from wasmetal.host.grants import Dir, Granted, grant, open_directory
from wasmetal.host.guest_calls import GuestCalls
from wasmetal.host.handles import Handles
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.isolated import IsolatedGuest
from wasmetal.host.limits import Limits
from wasmetal.host.link import CLOCKS, FILES, PATHS, RANDOM, GuestContext
from wasmetal.host.memory_map import MemoryMap, memory_map
from wasmetal.host.metering import MeteredDevice
from wasmetal.host.nn.grants import Given, device_of, needs_device, sources
from wasmetal.host.nn.services import backends, services
from wasmetal.host.program import Program
from wasmetal.host.randomness import Randomness
from wasmetal.host.runtime import runtime
from wasmetal.host.streams import Output, Pipe
from wasmetal.host.tokens import TokenCounts
from wasmetal.host.wasi_files import Files
from wasmetal.host.wasi_paths import Paths
from wasmetal.host.wasm import exited
from wasmetal.memory import Budget
from wasmetal.nn.backend import Source

if TYPE_CHECKING:
    from wasmetal.models.loaded import LoadedModel

T = TypeVar("T")

_TABLES = 4
_BYTES_PER_ELEMENT = 2048
"""A table may have one element for each so many bytes of ``memory_bytes``. An element takes up to 8 bytes, so tables
take up to a 64th of ``memory_bytes`` more. Wasmtime's C API does not tell how large they are."""


class Guest(Closing):
    """An instance of a WebAssembly module, in its sandbox.

    It can use one device, within its limits, and nothing else unless it is granted here. Use it as a context manager,
    or call :meth:`close`; a guest that is dropped instead is closed when the next one is made, called or closed. Its
    code runs on its own thread, one call at a time; Ctrl-C stops it. In a process that is forked later, every use
    raises ForkedError.
    """

    def __new__(cls, *args: Any, isolation: Literal["process"] | None = None, **kwargs: Any) -> Any:
        """A guest, or an :class:`IsolatedGuest`, which has the same methods."""
        if isolation is None:
            return super().__new__(cls)
        if isolation != "process":
            raise GuestError(f"isolation is {isolation!r}; it must be 'process' or None")
        return IsolatedGuest(*args, **kwargs)

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
        isolation: Literal["process"] | None = None,
        prefixes: str | None = None,
        stdin: wasi.Input = b"",
        stdout: wasi.Output | None = None,
        stderr: wasi.Output | None = None,
    ) -> None:
        """Instantiate a module. Only its start function, if it has one, runs yet.

        ``module``: a :class:`Program`, or the path or bytes of a core module, binary or text, or of a
        component, binary.
        ``device``: as for :func:`open_device`, or an open one, which stays open. It is opened only if the module
        imports from wasmetal.
        ``models``: what the guest can open, by its name there: a model's name or path, or a loaded one on the same
        device, which stays loaded.
        ``loading``: options of :func:`load_model` for the models that are not loaded yet, such as ``kv_type``.
        ``nn``: models for wasi-nn, by the guest's names for them: a model's name or path, such a one with options
        (:class:`NnModel`), or a loaded language model. They are loaded when the guest asks for them; a file that is not
        there is the guest's to hear of. See docs/wasi-nn.md.
        ``args``: without the program's name.
        ``dirs``: host directories, by the guest's names for them; writable, unless a :class:`Dir` says otherwise.
        ``trusted``: as for :class:`Program`; it changes only how the module is compiled.
        ``isolation``: "process" runs the guest in a process of its own, whose memory the system limits and which is
        killed if it hangs. It opens its own device and loads its own models, so those must be given by name; what the
        guest writes is passed on by the thread that runs it.
        ``prefixes``: have sessions begin with what guests of the same name here have run already, on models that keep
        that (``load_model(…, prefixes=…)``). How long a prompt takes then tells such a guest whether another has begun
        with the same, so guests should only share with those that may know.
        ``stdin``: bytes, "inherit" for the process's own, or a function that is called on the guest's thread when the
        guest reads, with the most bytes that it takes, and returns them, none at the end. What it raises ends the run.
        ``stdout``, ``stderr``: called with the bytes that the guest writes, as it writes them, on the guest's thread.
        If None, what is written is lost.

        Raises GuestError (no such file, not a module, an import that does not exist, a directory or model that cannot
        be granted), GuestTrapError, LimitError, MemoryRefusedError, DeviceError and ModelError.
        """
        unreleased.release_left()
        program = module if isinstance(module, Program) else Program(module, trusted=trusted)
        self.exit_code: int | None = None
        """The exit code, once the run has ended."""
        self._prefixes = prefixes
        self._llm: Llm | None = None
        self._released = False
        self._account = Account(limits or Limits())
        self._interrupt = Interrupt(self._account)
        self._context = GuestContext(program.memory64, self._account.counters, self._interrupt, self._account.host_time)
        self._calls = GuestCalls(self._account, self._interrupt, self._context)
        self._handles = Handles(self._account.limits.handles, secrets.randbits(32))
        self._stdout = Output(self._interrupt, stdout)
        self._device: MeteredDevice | None = None
        self._store = self._new_store(program.component is not None)
        self._cleanup = ExitStack()
        self._cleanup.callback(self._store.close)
        unreleased.opened(self)
        try:
            with setting_up("create the guest", GuestError):
                config = wasi.configure([program.name, *args], env or {})
                if program.component:
                    self._pipes = Pipes(config, self._stdout, Output(self._interrupt, stderr))
                    self._cleanup.callback(self._pipes.close)
                    component.configure(config, stdin, dirs or {})
                else:
                    self._give_wasi(stdin, stderr, dirs or {})
                self._store.set_wasi(config)
                found = sources(nn or {})
                granted = None
                for_nn = program.imports_nn and any(needs_device(source.model) for source in found.values())
                if device is not None or models or program.imports_device or for_nn:
                    device = device or device_of(found.values())
                    granted = grant(device, models or {}, loading or {}, self._cleanup)
                    self._give(granted)
                if program.imports_nn:
                    interface = ComponentNn if program.component else Nn
                    self._give_nn(interface, found, granted.device if granted else None, loading or {})
            self._instance = self._calls.enter(lambda: self._instantiate(program))
        except BaseException:
            self.close()
            raise

    @property
    def counters(self) -> Counters:
        """What the guest has caused so far."""
        return self._account.counters

    @property
    def host_seconds(self) -> float:
        """Processor time that the host has spent in the guest's calls, up to 20 ms ago."""
        return self._account.host_time.seconds

    @property
    def reused_tokens(self) -> int:
        """Tokens that its sessions did not have to run, since other guests had: see ``prefixes``."""
        return self._llm.reused if self._llm else 0

    def memory_map(self) -> MemoryMap | None:
        """What the exported memory is used for at the moment; None before the first host call and after the end.

        From any thread, also while the guest runs.
        """
        memory = self._context.memory
        return None if memory is None or self._released else memory_map(memory, self._handles)

    @property
    def token_counts(self) -> TokenCounts:
        """What it has had its language models read and choose."""
        return self._llm.counts if self._llm else TokenCounts()

    def run(self) -> int:
        """Run the module's ``_start``, as a command; return its exit code.

        Raises GuestTrapError, LimitError, and what a callback for its output raised.
        """
        self.exit_code = self._calls.enter(self._start)
        return self.exit_code

    def stream(self) -> Iterator[str]:
        """Run the module's ``_start`` and yield what it writes to standard output, as text, as it writes it.

        Stops the guest if the iterator is closed early. Raises what :meth:`run` does, and GuestError if the guest ends
        with an exit code other than 0.
        """
        pipe = Pipe(self._interrupt)

        def run() -> int:
            given, self._stdout.target = self._stdout.target, pipe.write
            try:
                return self._start()
            finally:
                self._stdout.target = given
                pipe.finish()

        call = self._calls.begin(run)
        try:
            yield from pipe.text(call.alive)
            self.exit_code = self._calls.end(call)
        finally:
            self._calls.abandon(call, GuestError("the guest's output is no longer read"))
        if self.exit_code:
            raise exited(self.exit_code)

    def call(self, name: str, *args: int | float) -> Any:
        """Call an exported function. Raises GuestError if there is none or it exits, GuestTrapError, LimitError."""
        return self._calls.enter(lambda: self._function(name)(self._store, *args))

    def read(self, address: int, nbytes: int) -> bytes:
        """A copy of ``nbytes`` bytes of the exported memory. Raises GuestError if they are not all inside it."""
        return self._calls.enter(
            lambda: bytes(self._memory(address, nbytes).read(self._store, address, address + nbytes))
        )

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes into the exported memory. Raises GuestError if they would leave it."""
        self._calls.enter(lambda: self._memory(address, len(data)).write(self._store, data, address) if data else 0)

    def stop(self) -> None:
        """Stop the guest, from another thread; its run raises GuestError. The guest cannot be run again."""
        self._interrupt.stop(GuestError("the guest was stopped"))
        runtime().ticker.tick()

    def close(self) -> None:
        """Stop the guest and release everything it held. Idempotent; nothing happens in a process forked since.

        A guest that cannot be stopped within a second, because it is in a long kernel on the CPU device, is released
        after it has ended: when the next guest is made, called or closed.
        """
        self.release()
        unreleased.release_left()

    def release(self) -> None:
        """See :class:`Releasable`; for callers there is :meth:`close`."""
        if self.here and not self._calls.close(self._clean_up) and not unreleased.is_left(self):
            unreleased.leave(self)  # it is in a kernel, which goes on using what it holds

    @property
    def here(self) -> bool:
        """See :class:`Releasable`."""
        return self._calls.origin.here

    @property
    def stuck(self) -> bool:
        """See :class:`Releasable`."""
        return self._calls.closed and self._calls.busy

    def __del__(self) -> None:
        # Closing takes locks, and this thread may hold any lock: garbage is collected in the middle of other work.
        if hasattr(self, "_cleanup") and not self._released:
            unreleased.leave(self)

    def _clean_up(self) -> None:
        self._released = True
        self._cleanup.close()

    def _new_store(self, component: bool) -> wasmtime.Store:
        limits, instances = self._account.limits, INSTANCES if component else 1
        tables = INSTANCES if component else _TABLES
        store = wasmtime_c.Store(runtime().engine)
        store.set_limits(
            memories=limits.memories,
            tables=tables,
            table_elements=min(max(limits.memory_bytes // _BYTES_PER_ELEMENT, 1 << 10), 1 << 20) * _TABLES // tables,
            instances=instances,
        )
        wasmtime_c.set_owner(store, self._context)
        return store

    def _own_interfaces(self) -> dict[str, object]:
        """Host functions that an actor has others of."""
        return {RANDOM: Randomness(self._interrupt), abi.ACTOR: NoMailbox()}

    def _family(self) -> Llm | None:
        """The interface of a guest that this one is a fork of."""
        return None

    def _open_files(
        self, stdin: wasi.Input, stderr: wasi.Output | None, dirs: Mapping[str, str | Path | Dir]
    ) -> Descriptors:
        descriptors = Descriptors(self._handles)
        self._cleanup.callback(descriptors.close)
        for stream in (Input(stdin, self._interrupt), self._stdout, Output(self._interrupt, stderr)):
            descriptors.grant(stream)
        for name, directory in dirs.items():
            descriptors.grant(open_directory(name, directory))
        return descriptors

    def _give_wasi(self, stdin: wasi.Input, stderr: wasi.Output | None, dirs: Mapping[str, str | Path | Dir]) -> None:
        """Connect a module's imports of WASI."""
        self._context.interfaces |= {CLOCKS: wasi.Clocks(self._interrupt), **self._own_interfaces()}
        self._descriptors = descriptors = self._open_files(stdin, stderr, dirs)
        self._context.interfaces[FILES] = Files(descriptors, self._account)
        self._context.interfaces[PATHS] = Paths(descriptors, self._account)

    def _give(self, granted: Granted) -> None:
        """Connect the guest's imports to the device and the models."""
        self._account.counters.add(granted.counters)
        self._device = device = MeteredDevice(granted.device, self._account, self._interrupt)
        self._cleanup.callback(device.close)
        gpu = Gpu(self._account, self._handles, device, self._interrupt)
        self._cleanup.callback(gpu.close)
        self._llm = llm = Llm(self._account, self._handles, device, granted.models, self._family(), self._prefixes)
        self._cleanup.callback(llm.close)
        self._context.interfaces |= {abi.GPU: gpu, abi.LLM: llm}

    def _give_nn(
        self,
        kind: type[Nn | ComponentNn],
        found: Mapping[str, Source],
        device: Device | None,
        loading: Mapping[str, Any],
    ) -> None:
        """Connect the guest's imports of wasi-nn to its models."""
        write = self._pipes.write if kind is ComponentNn else self._stdout
        use = services(self._account, self._interrupt, self._device, write)
        interface = kind(self._account, self._handles, found, backends(use, device, loading))
        self._cleanup.callback(interface.close)
        self._context.interfaces[NN.name] = interface

    def _instantiate(self, program: Program) -> Any:
        limits = self._account.limits
        try:
            budget = Budget(limits.memory_bytes)
            with runtime().creator.charging(budget), wasmtime_c.memory_refusals():
                if program.component:
                    nn = cast("ComponentNn | None", self._context.interfaces.get(NN.name))
                    return ComponentInstance(program.component, self._store, self._context, nn, self._pipes)
                return program.instantiate(self._store)
        except MemoryCountError:
            raise LimitError(f"limit reached: {limits.memories} linear memories") from None
        except MemorySizeError:
            raise LimitError(f"limit reached: {limits.memory_bytes} bytes of linear memory") from None

    def _function(self, name: str) -> wasmtime.Func:
        function = self._exports.get(name)
        if not isinstance(function, wasmtime.Func):
            raise GuestError(f"the module exports no function {name!r}")
        return function

    def _memory(self, address: int, nbytes: int) -> wasmtime.Memory:
        memory = self._exports.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            raise GuestError("the module exports no memory named 'memory'")
        size = memory.data_len(self._store)
        if min(address, nbytes) < 0 or address + nbytes > size:
            raise GuestError(f"{nbytes} bytes at {address:#x} leave the guest's memory of {size} bytes")
        return memory

    @property
    def _exports(self) -> Any:
        if isinstance(self._instance, ComponentInstance):
            raise GuestError("the guest is a component, which can only be run")
        return self._instance.exports(self._store)

    def _start(self) -> int:
        try:
            if isinstance(self._instance, ComponentInstance):
                return self._instance.run()
            self._function("_start")(self._store)
        except wasmtime.ExitTrap as exit:
            return exit.code
        return 0
