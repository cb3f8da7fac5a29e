"""Programs of actors: modules that export all of their state, compiled once for any number of actors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import wasmtime

from wasmetal.actor.chunks import digest_of_program
from wasmetal.actor.memory_image import MemoryImage
from wasmetal.actor.wasm_exports import export_state
from wasmetal.errors import GuestError
from wasmetal.host.compiler import binary_of
from wasmetal.host.program import Program
from wasmetal.host.wasm import read_module, to_binary
from wasmetal.memory import Region

MESSAGE, BEGIN, INITIALIZE = "wm_actor_message", "wm_actor_start", "_initialize"
"""What an actor's module exports, or may export: functions without parameters and results."""


class ActorProgram(Program):
    """A compiled module for actors. Actors made of it share its code; any thread may use it.

    ::

        program = wasmetal.ActorProgram("guests/chat.wasm")
        with wasmetal.Actor(program, models={"default": "smollm2:135m"}) as actor:
            for piece in actor.send("Why is the sky blue?"):
                print(piece.decode(), end="")
    """

    def __init__(self, module: str | Path | bytes, *, trusted: bool = False) -> None:
        """``module`` and ``trusted`` as for :class:`Program`.

        Raises GuestError as :class:`Program` does, and if the module exports no ``wm_actor_message``, imports anything
        but functions, or drops segments.
        """
        name, code = read_module(module)
        binary = to_binary(name, code) if trusted else binary_of(name, code)
        self.digest = digest_of_program(binary)
        """SHA-256 of the module as it was given, in binary."""
        rewritten, self.state = export_state(binary)
        self._load(name, rewritten, trusted)
        self._check_exports()
        self._images: tuple[MemoryImage, ...] | None = None
        self._lock = threading.Lock()

    def images(self, memories: Sequence[Region]) -> tuple[MemoryImage, ...]:
        """What an instance's memories hold before any of its code has run.

        ``memories``: those of such an instance, of which the first call makes a copy.
        """
        with self._lock:
            if self._images is None:
                self._images = tuple(MemoryImage(region.view()) for region in memories)
            return self._images

    def _check_exports(self) -> None:
        exports = {each.name: each.type for each in self._compiled.exports}
        if MESSAGE not in exports:
            raise GuestError(f"{self.name} exports no function {MESSAGE}; without it, no actor can be made of a module")
        for name in (MESSAGE, BEGIN, INITIALIZE):
            kind = exports.get(name)
            if kind is None:
                continue
            if not isinstance(kind, wasmtime.FuncType) or kind.params or kind.results:
                raise GuestError(f"{self.name} exports {name}, but not as a function without parameters and results")
