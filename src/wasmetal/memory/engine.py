"""The Wasmtime engine, set up so that linear memory is what the rest of wasmetal takes it for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import wasmtime

from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.creator import REFUSED, MemoryCreator

RESERVATION = 4 << 30
"""Bytes reserved for every memory at least: all that a 32-bit index can address, so that memory32 code needs no bounds
checks. Wasmtime's own default."""

GUARD = 32 << 20
"""Bytes after that which fault too: covers an access's constant offset. Wasmtime's own default."""

_WASMTIME_LIMITS = ("exceeds memory limits", "memory count too high", "failed to grow memory")


def new_engine(creator: MemoryCreator) -> wasmtime.Engine:
    """An engine for core modules whose linear memories come from ``creator``.

    Epoch interruption is on: call ``Store.set_epoch_deadline`` before running anything in a store, or it traps at once.
    """
    config = wasmtime.Config()
    creator.install(config)
    # Ours never move: the creator grows them in place or not at all. But where Wasmtime is told so, it takes the
    # reservation for the most that a memory can grow to, and compiles memory64 code that traps beyond it.
    config.memory_may_move = True
    config.memory_reservation = RESERVATION
    config.memory_guard_size = GUARD
    config.memory_init_cow = False  # maps data segments over memory; with host memory, Wasmtime aborts the process
    config.signals_based_traps = True  # a fault past the size is the bounds check
    config.epoch_interruption = True
    config.wasm_memory64 = True
    config.wasm_multi_memory = True
    config.wasm_custom_page_sizes = False  # a size must be whole host pages; 64 KiB always is
    config.wasm_threads = False  # a shared memory could change under a device
    return wasmtime.Engine(config)


@contextmanager
def memory_refusals() -> Iterator[None]:
    """Turn Wasmtime's errors about linear memory into MemoryRefusedError, with the reason; let others pass.

    Put it around instantiation and ``Memory.grow``. (A guest's own ``memory.grow`` is told -1 and no reason.)
    """
    try:
        yield
    except wasmtime.WasmtimeError as error:
        message = str(error)
        if REFUSED in message:
            raise MemoryRefusedError(message.partition(REFUSED)[2].strip()) from error
        if any(limit in message for limit in _WASMTIME_LIMITS):
            raise MemoryRefusedError(f"{message}; raise the guest's memory limit") from error
        raise
