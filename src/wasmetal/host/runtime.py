"""What all guests of a process share: one Wasmtime engine, the source of their memories, and the clock that stops them.

``wasmetal.memory.wasmtime_engine`` configures the engine.
"""

from __future__ import annotations

import os

from wasmetal import wasmtime_c
from wasmetal.forked import Origin
from wasmetal.host.ticker import Ticker
from wasmetal.memory import MemoryCreator, new_engine
from wasmetal.once import once


class Runtime:
    """The engine, the creator of its linear memories, and the ticker by which running guests are interrupted."""

    def __init__(self) -> None:
        self.creator = MemoryCreator()
        self.engine = new_engine(self.creator)
        self.ticker = Ticker(self.engine.increment_epoch)
        self.origin = Origin("Wasmtime")
        os.register_at_fork(after_in_child=wasmtime_c.release_nothing)


_runtime = once(Runtime)


def runtime() -> Runtime:
    """The process's runtime. Raises GuestError if its thread cannot be started.

    Raises ForkedError in a process that was forked later: there, neither the ticker nor Wasmtime's own threads exist.
    """
    made = _runtime()
    made.origin.check()
    return made
