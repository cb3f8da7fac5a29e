"""Host functions, as Wasmtime calls them: raw values in, an errno out, and nothing raised into the guest.

They are linked once per process and serve every guest: each call looks up the guest that makes it.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from time import perf_counter

import wasmtime

from wasmetal import wasmtime_c
from wasmetal.counters import Counters
from wasmetal.errors import LimitError, WasmetalError, printable
from wasmetal.host import abi, wasi_abi
from wasmetal.host.abi import nn
from wasmetal.host.errno import Errno, NoMemory, Refusal, WasiErrno, errno_of
from wasmetal.host.host_time import HostTime
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.nn.errnos import nn_errno
from wasmetal.host.runtime import runtime
from wasmetal.host.view import GuestMemory
from wasmetal.nn.errors import NnErrno, NnRefusal
from wasmetal.once import once

log = logging.getLogger("wasmetal.guest")
"""Refused calls at level DEBUG; failures of the host at level ERROR, once for each guest, function and kind of error,
and all of them with tracebacks at level DEBUG."""


ErrnoFor = Callable[[BaseException], IntEnum]
CLOCKS, RANDOM, FILES, PATHS = "clocks", "random", "files", "paths"


@dataclass(eq=False)
class GuestContext:
    """What host functions need to know of the calling guest. It must live as long as the guest's store."""

    memory64: bool
    counters: Counters
    interrupt: Interrupt
    host_time: HostTime
    interfaces: dict[str, object] = field(default_factory=dict)
    """The objects whose methods are host functions: by module name, those of WASI as CLOCKS, RANDOM, FILES and
    PATHS."""
    memory: GuestMemory | None = None
    """The guest's memory, from the first host call on."""
    reported: set[tuple[str, type]] = field(default_factory=set)
    """Functions that have failed, and how: each is logged once."""

    def may_go_on(self) -> bool:
        """Called by Wasmtime at each tick of the epoch."""
        return self.interrupt.may_go_on()


@dataclass(frozen=True)
class HostFunctions:
    """A linker with every function that guests can import, for one width of addresses."""

    linker: wasmtime.Linker
    callbacks: list[object]
    """The C functions, which Wasmtime does not keep alive."""


@once
def host_functions(memory64: bool) -> HostFunctions:
    """The functions for guests with 64-bit addresses, or with 32-bit ones."""
    linker = wasmtime.Linker(runtime().engine)
    linker.define_wasi()
    linker.allow_shadowing = True  # of WASI's functions, those for clocks, random bytes and files are replaced
    functions = HostFunctions(linker, [])
    _define(functions, wasi_abi.MODULE, CLOCKS, wasi_abi.CLOCKS, memory64)
    _define(functions, wasi_abi.MODULE, RANDOM, wasi_abi.RANDOM, memory64)
    _define(functions, wasi_abi.MODULE, FILES, wasi_abi.FILES, memory64)
    _define(functions, wasi_abi.MODULE, PATHS, wasi_abi.PATHS, memory64)
    for module, signatures in abi.INTERFACES.items():
        _define(functions, module, module, signatures, memory64)
    if not memory64:
        _define(functions, nn.NN.name, nn.NN.name, nn.SIGNATURES, memory64, nn_errno)
    return functions


def _define(
    functions: HostFunctions,
    module: str,
    interface: str,
    signatures: dict[str, tuple[str, ...]],
    memory64: bool,
    errno_for: ErrnoFor = errno_of,
) -> None:
    """Link the functions of one module, which are methods of one of the guest's interfaces."""
    for name, kinds in signatures.items():
        function = _adapt(interface, name, kinds, memory64, errno_for)
        type_ = abi.func_type(kinds, memory64)
        functions.callbacks.append(wasmtime_c.define_function(functions.linker, module, name, type_, function))


def _adapt(
    interface: str, name: str, kinds: tuple[str, ...], memory64: bool, errno_for: ErrnoFor
) -> wasmtime_c.HostFunction:
    """Make a host function of a method that takes the guest's memory and then its parameters.

    The method receives the parameters as non-negative integers. ``errno_for`` gives the errno for what it raises.
    """
    # A raw value takes 16 bytes; the upper half of an i32's 8 bytes is undefined.
    widths = [abi.width(kind, memory64) for kind in kinds]
    parameters = struct.Struct("<" + "".join({32: "I12x", 64: "Q8x"}[width] for width in widths))
    values_type = ctypes.c_uint64 * max(2 * len(kinds), 1)
    unpack = parameters.unpack_from
    count = interface in abi.INTERFACES or interface == nn.NN.name  # WASI's calls are not counted

    def call(_env: int, caller: int, raw: int, _count: int) -> int:
        errno: int
        begin = perf_counter()
        values = values_type.from_address(raw)
        context: GuestContext = wasmtime_c.owner_of(caller)
        context.host_time.begun = begin
        try:
            if count:
                context.counters.host_calls += 1
            memory = context.memory or _find_memory(context, caller)
            method = getattr(context.interfaces[interface], name)
            method(memory, *unpack(values))
            errno = 0
        except (Refusal, NnRefusal) as refusal:
            errno = errno_for(refusal)
            log.debug("%s.%s: %s: %s", interface, name, refusal.errno.name, refusal)
        except BaseException as error:
            if error is context.interrupt.reason or isinstance(error, STOPS):
                return context.interrupt.trap(error)
            errno = failed(context, f"{interface}.{name}", error, errno_for(error))
        finally:
            context.host_time.called(perf_counter() - begin)
        values[0] = errno
        return 0

    return call


STOPS = (LimitError, KeyboardInterrupt, SystemExit)
"""Errors that end the guest's run. Any other one gives an errno, even a BaseException, such as a panic of a package
that is written in Rust."""


def failed(context: GuestContext, function: str, error: BaseException, errno: IntEnum) -> int:
    """Log what the guest did not cause, without letting the guest fill the log; return the errno."""
    failures = (Errno.IO, WasiErrno.IO, NnErrno.RUNTIME_ERROR)
    expected = errno not in failures if isinstance(error, WasmetalError | OSError) else False
    log.debug("%s: %s", function, error, exc_info=error)
    if not expected and (kind := (function, type(error))) not in context.reported:
        context.reported.add(kind)
        line = printable(f"{type(error).__name__}: {' '.join(str(error).split())}")
        log.error("%s: %s", function, line, extra={"cause": error})  # for handlers that want more than a line
    return errno


def _find_memory(context: GuestContext, caller: int) -> GuestMemory:
    # Looked up at the first call, because a start function may call before the instance is returned.
    address = wasmtime_c.exported_memory(caller, "memory")
    if address is None:
        raise NoMemory(Errno.FAULT, "the guest exports no memory named memory")
    context.memory = GuestMemory(runtime().creator.region_at(address), context.memory64)
    return context.memory
