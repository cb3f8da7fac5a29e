"""The hook through which Wasmtime takes every linear memory of a guest from our regions.

Wasmtime's C API calls it a host memory creator (``wasmtime_config_host_memory_creator_set``); the Python package
declares it in its low-level bindings only.
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from typing import Any

import wasmtime
from wasmtime import _bindings as c_api

from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.pages import Pages
from wasmetal.memory.region import Region

REFUSED = "linear memory refused: "
"""Begins the message of every error that this module hands to Wasmtime, so that it can be told from others."""


class MemoryCreator:
    """Makes a region for each linear memory that a module defines, and finds it again by its address.

    Thread safe: any number of engines, stores and threads may share one.

    Memories that the host makes itself (``wasmtime.Memory(...)``) do not pass through here: Wasmtime has no hook for
    those. Let a module define and export them.

    Run guests on a thread other than the main one. Python raises KeyboardInterrupt in whatever Python code the main
    thread runs next, and where that is a callback from Wasmtime, the callback's answer is lost.
    """

    def __init__(self, max_capacity: int = 64 << 30) -> None:
        """``max_capacity``: bytes, whole pages, that one memory may grow to.

        It matters to memory64 alone, whose declared maximum can be more than any address space holds: what a memory may
        grow to is reserved at once. 64 GiB is more than a guest will fill, and a thousand of them still fit in the 2^47
        bytes of a process.
        """
        self.max_capacity = max_capacity
        self._regions: dict[int, Region] = {}

    def install(self, config: wasmtime.Config) -> None:
        """Make engines of this configuration use this creator; they keep it alive. See :func:`new_engine`."""
        hook = c_api.wasmtime_memory_creator_t(_lend(self), _NEW_MEMORY, _DROP_CREATOR)
        c_api.wasmtime_config_host_memory_creator_set(config.ptr(), ctypes.byref(hook))

    def region_at(self, address: int) -> Region:
        """The region of the live linear memory with this base address (``Memory.data_ptr``). Raises KeyError."""
        return self._regions[address]

    def regions(self) -> list[Region]:
        """The regions of all live linear memories, oldest first; the heap of a guest that uses GC types is one too."""
        return list(self._regions.values())

    def _create(self, minimum: int, maximum: int, reserved: int, guard: int) -> _LinearMemory:
        """All sizes in bytes.

        Compiled code leaves out bounds checks wherever an address cannot pass ``reserved + guard``, so all of that
        must fault, even where the memory may not grow so far.
        """
        if minimum > self.max_capacity:
            raise MemoryRefusedError(
                f"a memory of {minimum} bytes is over the limit of {self.max_capacity}; raise max_capacity"
            )
        capacity = min(maximum, self.max_capacity)
        region = Region(capacity, minimum, guard=max(reserved - capacity, 0) + guard)
        self._regions[region.address] = region
        return _LinearMemory(self, region, region.pages)


@dataclass(slots=True)
class _LinearMemory:
    """What Wasmtime holds of ours for one memory. It holds the pages itself, should anybody close the region."""

    creator: MemoryCreator
    region: Region
    pages: Pages


# Wasmtime knows our objects by a number, and they live here until it calls their finalizer. Counting and single
# operations on a dict are atomic in Python, so no lock is needed, here or in MemoryCreator.
_lent: dict[int, Any] = {}
_numbers = itertools.count(1)


def _lend(thing: object) -> int:
    number = next(_numbers)
    _lent[number] = thing
    return number


def _refusal(error: BaseException) -> int:
    """A new error, owned by Wasmtime once returned to it."""
    reason = str(error) if isinstance(error, MemoryRefusedError) else repr(error)
    pointer = c_api.wasmtime_error_new((REFUSED + reason).encode())
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


# The callbacks. Nothing may be raised through C: what fails, KeyboardInterrupt included, is returned as an error, and 0
# stands for success.


def _new_memory(env: int, _type: Any, minimum: int, maximum: int, reserved: int, guard: int, out: Any) -> int:
    try:
        memory = _lent[env]._create(minimum, maximum, reserved, guard)
        out[0] = c_api.wasmtime_linear_memory_t(_lend(memory), _GET_MEMORY, _GROW_MEMORY, _DROP_MEMORY)
    except BaseException as error:
        return _refusal(error)
    return 0


def _get_memory(env: int, size: Any, capacity: Any) -> int:
    region: Region = _lent[env].region
    size[0] = region.size
    capacity[0] = region.capacity
    return region.address


def _grow_memory(env: int, size: int) -> int:
    try:
        _lent[env].region.grow(size)
    except BaseException as error:
        return _refusal(error)
    return 0


def _drop_memory(env: int) -> None:
    memory: _LinearMemory = _lent.pop(env)
    # Forgotten before it is unmapped: another thread may be given the same address at once.
    del memory.creator._regions[memory.region.address]
    memory.region.close()


def _drop_creator(env: int) -> None:
    del _lent[env]


# As C functions. They live as long as the module, hence outlive every engine.
_NEW_MEMORY = c_api.wasmtime_new_memory_callback_t(_new_memory)
_GET_MEMORY = c_api.wasmtime_memory_get_callback_t(_get_memory)
_GROW_MEMORY = c_api.wasmtime_memory_grow_callback_t(_grow_memory)
_finalizer_t = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DROP_MEMORY = _finalizer_t(_drop_memory)
_DROP_CREATOR = _finalizer_t(_drop_creator)
