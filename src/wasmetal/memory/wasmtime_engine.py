"""How Wasmtime's engine is configured, so that linear memory behaves as the rest of wasmetal assumes.

This is the configuration only. The engine that the guests of a process share, with the clock that interrupts them, is
``wasmetal.host.runtime``.
"""

from __future__ import annotations

import wasmtime

from wasmetal.memory.creator import MemoryCreator

RESERVATION = 4 << 30
"""Least bytes reserved for a memory: all that a 32-bit index can address, so that memory32 code needs no bounds checks.
Wasmtime's default."""

GUARD = 32 << 20
"""Bytes of the guard after the reservation, which covers the constant offset of an access. Wasmtime's default."""

SETTINGS: dict[str, bool | int] = {
    # Regions never move: they grow in place or not at all. But if Wasmtime is told so, it assumes that no memory grows
    # past the reservation, and compiles memory64 code that traps there.
    "memory_may_move": True,
    "memory_reservation": RESERVATION,
    "memory_guard_size": GUARD,
    "memory_init_cow": False,  # maps data segments over memory; with host memory, Wasmtime aborts the process
    "signals_based_traps": True,  # a fault past the size is the bounds check
    "epoch_interruption": True,
    "wasm_memory64": True,
    "wasm_multi_memory": True,
    "wasm_custom_page_sizes": False,  # a size must be whole host pages; 64 KiB always is
    "wasm_threads": False,  # a shared memory could change under a device
    # Objects and exceptions live on a second heap, with a collector: guests do without.
    "wasm_gc": False,
    "wasm_function_references": False,
    "wasm_exceptions": False,
}
"""Properties of ``wasmtime.Config``. Compiled code depends on them."""


def new_engine(creator: MemoryCreator, *, parallel: bool = False) -> wasmtime.Engine:
    """An engine for core modules whose linear memories come from ``creator``.

    ``parallel``: it compiles on several threads, and aborts the process if these cannot be started.

    Epoch interruption is on: call ``Store.set_epoch_deadline`` before running anything in a store, or it traps at once.
    """
    config = wasmtime.Config()
    config.parallel_compilation = parallel
    creator.install(config)
    for name, value in SETTINGS.items():
        setattr(config, name, value)
    return wasmtime.Engine(config)
