"""Everything that wasmetal uses of the C API that Wasmtime's Python package keeps private.

The package makes no promise about these names, so upgrading it can break this module, and should break no other.
Everything needed is listed in ``PRIVATE`` and looked up when this module is imported.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from types import SimpleNamespace
from typing import Any, Protocol

import wasmtime

from wasmetal.errors import MemoryCountError, MemoryRefusedError, MemorySizeError, WasmetalError

SUPPORTED = ">=50,<51"
"""Versions of the package wasmtime that this module is written for, as in ``pyproject.toml``."""

PRIVATE: dict[str, tuple[str, ...]] = {
    "wasmtime._bindings": (
        "dll",
        "wasmtime_caller_context",
        "wasmtime_caller_t",
        "wasmtime_config_host_memory_creator_set",
        "wasmtime_context_get_data",
        "wasmtime_context_set_data",
        "wasmtime_context_t",
        "wasmtime_error_new",
        "wasmtime_func_to_raw",
        "wasmtime_func_unchecked_callback_t",
        "wasmtime_global_get",
        "wasmtime_global_set",
        "wasmtime_linear_memory_t",
        "wasmtime_linker_define_func_unchecked",
        "wasmtime_memory_creator_t",
        "wasmtime_memory_get_callback_t",
        "wasmtime_memory_grow_callback_t",
        "wasmtime_new_memory_callback_t",
        "wasmtime_store_epoch_deadline_callback",
        "wasmtime_update_deadline_kind_t",
        "wasmtime_val_t",
    ),
    "wasmtime._managed": ("Managed",),
    "wasmtime.component._types": ("case_test_cache",),
    "wasmtime.Config": ("ptr",),
    "wasmtime.Func": ("_as_extern",),
    "wasmtime.FuncType": ("ptr",),
    "wasmtime.Global": ("_as_extern",),
    "wasmtime.Linker": ("ptr",),
    "wasmtime.Store": ("ptr", "_context"),
    "wasmtime.Trap": ("_consume",),
    "wasmtime.WasmtimeError": ("_from_ptr",),
}
"""The private names in use, by the module or class that has them."""


def version() -> str:
    """The installed package's version."""
    return metadata.version("wasmtime")


def missing() -> list[str]:
    """The names in ``PRIVATE`` that the installed wasmtime lacks."""
    return [f"{home}.{name}" for home, names in PRIVATE.items() for name in names if not hasattr(_find(home), name)]


def check_version() -> None:
    """Raise WasmetalError if the installed wasmtime lacks anything that this module uses."""
    if lacking := missing():
        raise WasmetalError(
            f"wasmtime {version()} has no {', '.join(lacking)}; "
            f"wasmetal supports wasmtime{SUPPORTED}: pip install 'wasmtime{SUPPORTED}'"
        )


def _find(home: str) -> Any:
    try:
        return importlib.import_module(home)
    except ImportError:
        return getattr(wasmtime, home.rpartition(".")[2], None)


check_version()
# Built from the list, so that no other name can be used.
_c = SimpleNamespace(**{name: getattr(_find("wasmtime._bindings"), name) for name in PRIVATE["wasmtime._bindings"]})

_finalizer_t = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_NO_FINALIZER = ctypes.cast(0, _finalizer_t)
# Wasmtime refers to Python objects by number. Counting and single dict operations are atomic, so no lock is needed.
_numbers = itertools.count(1)


def _address(pointer: Any) -> int:
    """A C pointer as an integer."""
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def new_error(message: str) -> int:
    """The address of a new error, which Wasmtime owns once a callback has returned it."""
    return _address(_c.wasmtime_error_new(message.encode()))


def new_trap(message: str) -> int:
    """The address of a new trap, which Wasmtime owns once a callback has returned it."""
    return _address(wasmtime.Trap(message)._consume())


def release_nothing() -> None:
    """From now on, leave what the package's objects own unreleased.

    For a forked process: a thread of its parent may have held one of Wasmtime's locks, and would never release it here.
    """
    _find("wasmtime._managed").Managed.__del__ = lambda managed: None


# ---- Linear memory


class LinearMemory(Protocol):
    """One linear memory, as Wasmtime sees it. Sizes are in bytes."""

    @property
    def address(self) -> int:
        """The first byte; it never moves."""

    @property
    def size(self) -> int:
        """Accessible bytes."""

    @property
    def capacity(self) -> int:
        """The bytes that it can grow to."""

    def grow(self, size: int) -> None:
        """Make ``size`` bytes accessible. An exception refuses the request."""

    def drop(self) -> None:
        """Wasmtime no longer uses the memory."""


class MemorySource(Protocol):
    """Makes linear memories."""

    def new_memory(self, minimum: int, maximum: int, reserved: int, guard: int) -> LinearMemory:
        """A memory of ``minimum`` bytes that may grow to ``maximum``. An exception refuses the request.

        Compiled code omits bounds checks wherever an address cannot pass ``reserved + guard`` bytes, so all bytes past
        the size and up to there must fault.
        """


_REFUSED = "linear memory refused: "
"""Prefix of every error message that a memory's callbacks return to Wasmtime, to tell these errors from others."""
_LIMITS: dict[str, type[MemoryRefusedError]] = {
    "exceeds memory limits": MemorySizeError,
    "memory count too high": MemoryCountError,
    "failed to grow memory": MemoryRefusedError,
}
"""Parts of Wasmtime's messages about limits of a store. Its C API has no codes for them."""
lent: dict[int, Any] = {}
"""The Python objects that Wasmtime holds, by number, until it calls their finalizer."""


class _Refused(threading.local):
    error: MemoryRefusedError | None = None


_refused = _Refused()
"""Each thread's last refusal by a callback: Wasmtime passes on the message of an error but not its type."""


def set_memory_source(config: wasmtime.Config, source: MemorySource) -> None:
    """Have engines of this configuration take every linear memory of a module from ``source``, and keep it alive."""
    hook = _c.wasmtime_memory_creator_t(_lend(source), _NEW_MEMORY, _DROP_SOURCE)
    _c.wasmtime_config_host_memory_creator_set(config.ptr(), ctypes.byref(hook))


@contextmanager
def memory_refusals() -> Iterator[None]:
    """Turn Wasmtime's errors about linear memory into MemoryRefusedError, with the reason; other errors pass.

    For instantiation and ``Memory.grow``. (A guest's own ``memory.grow`` gives -1 and no reason.) Raises
    MemorySizeError and MemoryCountError for limits of the store, otherwise what the memory source raised.
    """
    _refused.error = None
    try:
        yield
    except wasmtime.WasmtimeError as error:
        message = str(error)
        if _REFUSED in message:
            raise (_refused.error or MemoryRefusedError(message.partition(_REFUSED)[2].strip())) from error
        for text, kind in _LIMITS.items():
            if text in message:
                raise kind(f"{message}; raise the guest's memory limit") from error
        raise
    finally:
        _refused.error = None


def _lend(thing: MemorySource | LinearMemory) -> int:
    number = next(_numbers)
    lent[number] = thing
    return number


def _refusal(error: BaseException) -> int:
    refused = error if isinstance(error, MemoryRefusedError) else MemoryRefusedError(repr(error))
    _refused.error = refused.with_traceback(None)  # a traceback would keep every frame that it passed through alive
    return new_error(f"{_REFUSED}{refused}")


# The callbacks. No exception may pass through C: every one, KeyboardInterrupt included, is returned as an error; 0
# means success.


def _new_memory(env: int, _type: Any, minimum: int, maximum: int, reserved: int, guard: int, out: Any) -> int:
    try:
        memory = lent[env].new_memory(minimum, maximum, reserved, guard)
        out[0] = _c.wasmtime_linear_memory_t(_lend(memory), _GET_MEMORY, _GROW_MEMORY, _DROP_MEMORY)
    except BaseException as error:
        return _refusal(error)
    return 0


def _get_memory(env: int, size: Any, capacity: Any) -> int:
    memory: LinearMemory = lent[env]
    size[0], capacity[0] = memory.size, memory.capacity
    return memory.address


def _grow_memory(env: int, size: int) -> int:
    try:
        lent[env].grow(size)
    except BaseException as error:
        return _refusal(error)
    return 0


def _drop_memory(env: int) -> None:
    lent.pop(env).drop()


def _drop_source(env: int) -> None:
    del lent[env]


# The same as C functions. They live as long as this module, so they outlive every engine.
_NEW_MEMORY = _c.wasmtime_new_memory_callback_t(_new_memory)
_GET_MEMORY = _c.wasmtime_memory_get_callback_t(_get_memory)
_GROW_MEMORY = _c.wasmtime_memory_grow_callback_t(_grow_memory)
_DROP_MEMORY = _finalizer_t(_drop_memory)
_DROP_SOURCE = _finalizer_t(_drop_source)


# ---- Stores, and the Python object that each belongs to


class StoreOwner(Protocol):
    """The owner of a store."""

    def may_go_on(self) -> bool:
        """Called at every tick of the engine's epoch while code of the store runs; False stops the code."""


_owners: dict[int, weakref.ref[StoreOwner]] = {}

_epoch_callback_t = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.POINTER(_c.wasmtime_context_t),
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(_c.wasmtime_update_deadline_kind_t),
)
_CONTINUE = 0

# On the path of every host call, so they are called without releasing the GIL, which would take longer than they do.
_quick_t = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_caller_context = _quick_t(_address(_c.dll.wasmtime_caller_context))
_context_data = _quick_t(_address(_c.dll.wasmtime_context_get_data))


class Store(wasmtime.Store):
    """A store that is deleted by :meth:`close` only.

    Wasmtime's own is also deleted by the garbage collector, which may find it together with its guest; the guest is
    then closed by another thread, and both would delete the store if they did it at the same time.
    """

    def __del__(self) -> None:
        pass


def set_owner(store: wasmtime.Store, owner: StoreOwner) -> None:
    """Set a store's owner. The store does not keep it alive: it must live at least as long as the store."""
    number = next(_numbers)
    _owners[number] = weakref.ref(owner)
    _c.wasmtime_context_set_data(store._context(), number)
    _c.wasmtime_store_epoch_deadline_callback(store.ptr(), _EPOCH, number, _DROP_OWNER)
    store.set_epoch_deadline(1)


class _Thread(threading.local):
    """The calling thread."""

    owner: Any = None


_this = _Thread()


def run_only(owner: StoreOwner) -> None:
    """From now on, the calling thread runs code of this owner's store only. :func:`owner_of` is quicker then."""
    _this.owner = owner


def owner_of(caller: int) -> Any:
    """The owner of the store that calls a host function; ``caller`` is its callback's argument of that name."""
    return _this.owner or _owners[_context_data(_caller_context(caller))]()


def exported_memory(caller: int, name: str) -> int | None:
    """The address of the linear memory that the calling instance exports as ``name``; None if it exports none."""
    instance = wasmtime.Caller(ctypes.cast(caller, ctypes.POINTER(_c.wasmtime_caller_t)))
    memory = instance.get(name)
    if not isinstance(memory, wasmtime.Memory):
        return None
    return ctypes.addressof(memory.data_ptr(instance).contents)


def _on_epoch(_context: Any, number: int, delta: Any, kind: Any) -> int:
    try:
        owner = _owners[number]()
        stop = owner is None or not owner.may_go_on()
    except BaseException as error:
        return new_error(repr(error))
    if stop:
        return new_error("stopped by the host")
    delta[0], kind[0] = 1, _CONTINUE
    return 0


def _drop_owner(number: int) -> None:
    _owners.pop(number, None)


_EPOCH = _epoch_callback_t(_on_epoch)
_DROP_OWNER = _finalizer_t(_drop_owner)


# ---- Host functions

_host_function_t = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

HostFunction = Callable[[int, int, int, int], int]
"""Takes an unused number, the caller, the address of the raw values (16 bytes each; results overwrite the parameters)
and their count; returns 0 or the address of a trap. It must not raise."""


def define_function(
    linker: wasmtime.Linker, module: str, name: str, type_: wasmtime.FuncType, function: HostFunction
) -> object:
    """Define a host function through Wasmtime's unchecked calls: about 0.4 µs each, against 6 µs for the package's own.

    The caller must keep the returned object while the linker, or anything instantiated with it, is in use.
    """
    callback = _host_function_t(function)
    error = _c.wasmtime_linker_define_func_unchecked(
        linker.ptr(),
        ctypes.create_string_buffer(module.encode()),
        len(module.encode()),
        ctypes.create_string_buffer(name.encode()),
        len(name.encode()),
        type_.ptr(),
        ctypes.cast(callback, _c.wasmtime_func_unchecked_callback_t),
        None,
        _NO_FINALIZER,
    )
    if error:
        raise wasmtime.WasmtimeError._from_ptr(error)
    return callback


# ---- Components


class _SetOfThread(threading.local):
    """A set for each thread."""

    def __init__(self) -> None:
        self._set: set[type] = set()

    def add(self, kind: type) -> None:
        self._set.add(kind)

    def clear(self) -> None:
        self._set.clear()

    def __iter__(self) -> Iterator[type]:
        return iter(self._set)


# The package's own is used for what host functions return, by all threads at once.
_find("wasmtime.component._types").case_test_cache = _SetOfThread()


# ---- Globals and references, bit for bit


def global_bits(store: wasmtime.Store, exported: wasmtime.Global, nbytes: int) -> bytes:
    """The first ``nbytes`` bytes, at most 16, of a global that is no reference; Python's floats lose bits of a NaN."""
    value = _value(store, exported)
    return bytes(ctypes.string_at(ctypes.addressof(value.of), nbytes))


def set_global_bits(store: wasmtime.Store, exported: wasmtime.Global, bits: bytes) -> None:
    """Set a global that is mutable and no reference, to what :func:`global_bits` gave."""
    value = _value(store, exported)  # for its type
    ctypes.memmove(ctypes.addressof(value.of), bits, min(len(bits), 16))
    pointer = ctypes.byref(exported._as_extern().of.global_)
    if error := _c.wasmtime_global_set(store._context(), pointer, ctypes.byref(value)):
        raise wasmtime.WasmtimeError._from_ptr(error)


def function_address(store: wasmtime.Store, function: wasmtime.Func) -> int:
    """What tells a function of an instance from its others: the same for every reference to it."""
    return _address(_c.wasmtime_func_to_raw(store._context(), ctypes.byref(function._as_extern().of.func)))


def _value(store: wasmtime.Store, exported: wasmtime.Global) -> Any:
    value = _c.wasmtime_val_t()
    _c.wasmtime_global_get(store._context(), ctypes.byref(exported._as_extern().of.global_), ctypes.byref(value))
    return value
