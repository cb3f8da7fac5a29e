"""Host functions, as Wasmtime calls them: raw values in, an errno out, and nothing raised into the guest.

They are defined through the C API's unchecked functions: about 0.4 µs a call, against 6 µs through the Python package's
own, which converts every value.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any

import wasmtime
from wasmtime import _bindings as c_api

from wasmetal.errors import LimitError
from wasmetal.host import abi
from wasmetal.host.errno import Errno, Refusal, errno_of
from wasmetal.host.interrupt import NO_FINALIZER, Interrupt
from wasmetal.host.limits import Account
from wasmetal.host.view import GuestMemory
from wasmetal.memory import MemoryCreator

log = logging.getLogger("wasmetal.guest")
"""What guests were refused, at level DEBUG, and what went wrong in the host, at level ERROR."""

_Callback = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class HostFunctions:
    """The functions that one guest can import. Must outlive the guest's store."""

    def __init__(self, creator: MemoryCreator, account: Account, interrupt: Interrupt, memory64: bool) -> None:
        self._creator = creator
        self._account = account
        self._interrupt = interrupt
        self._memory64 = memory64
        self._memory: GuestMemory | None = None
        self._callbacks: list[Any] = []

    def define(
        self, linker: wasmtime.Linker, module: str, functions: dict[str, tuple[str, ...]], target: object, count: bool
    ) -> None:
        """Link ``target``'s methods under their names, with parameters of these kinds.

        A method takes the guest's memory and then its parameters as non-negative integers. ``count``: its calls are
        counted as host calls.
        """
        for name, kinds in functions.items():
            masks = tuple((1 << abi.width(kind, self._memory64)) - 1 for kind in kinds)
            callback = _Callback(self._adapt(f"{module}.{name}", getattr(target, name), masks, count))
            self._callbacks.append(callback)
            type_ = abi.func_type(kinds, self._memory64)  # must live until the call returns
            error = c_api.wasmtime_linker_define_func_unchecked(
                linker.ptr(),
                ctypes.create_string_buffer(module.encode()),
                len(module),
                ctypes.create_string_buffer(name.encode()),
                len(name),
                type_.ptr(),
                ctypes.cast(callback, c_api.wasmtime_func_unchecked_callback_t),
                None,
                NO_FINALIZER,
            )
            if error:
                raise wasmtime.WasmtimeError._from_ptr(error)

    def _adapt(
        self, name: str, method: Callable[..., None], masks: tuple[int, ...], count: bool
    ) -> Callable[[int, int, int, int], int]:
        # A raw value takes 16 bytes; what lies above an i32 in its 8 bytes is whatever was there.
        values_type = ctypes.c_uint64 * (2 * len(masks))
        counters, interrupt = self._account.counters, self._interrupt

        def call(_env: int, caller: int, raw: int, _count: int) -> int:
            values = values_type.from_address(raw)
            try:
                if count:
                    counters.host_calls += 1
                memory = self._memory or self._find_memory(caller)
                method(memory, *[value & mask for value, mask in zip(values[::2], masks, strict=True)])
                errno = Errno.SUCCESS
            except Refusal as refusal:
                errno = refusal.errno
                log.debug("%s: %s: %s", name, errno.name, refusal)
            except Exception as error:
                if isinstance(error, LimitError) or error is interrupt.reason:
                    return interrupt.trap(error)
                errno = errno_of(error)
                log.log(logging.ERROR if errno is Errno.IO else logging.DEBUG, "%s: %s", name, error, exc_info=error)
            except BaseException as stop:
                return interrupt.trap(stop)
            values[0] = errno
            return 0

        return call

    def _find_memory(self, pointer: int) -> GuestMemory:
        # Looked up at the first call, as a module's start function may call before there is an instance to ask.
        caller = wasmtime.Caller(ctypes.cast(pointer, ctypes.POINTER(c_api.wasmtime_caller_t)))
        memory = caller.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            raise Refusal(Errno.FAULT, "the guest exports no memory named memory")
        address = ctypes.addressof(memory.data_ptr(caller).contents)
        self._memory = GuestMemory(self._creator.region_at(address), self._memory64)
        return self._memory
