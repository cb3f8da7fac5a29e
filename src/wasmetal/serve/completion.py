"""One completion: a guest, on the thread that runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wasmetal.counters import Counters
from wasmetal.errors import GuestError
from wasmetal.host.guest import Guest
from wasmetal.host.limits import Limits
from wasmetal.host.memory_map import MemoryMap
from wasmetal.host.program import Program
from wasmetal.serve.constraint import Constraint
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.protocol import End, ReplyReader, Request, Token

if TYPE_CHECKING:
    from wasmetal.models import Model

_MOST_ERRORS = 500
"""Bytes that are kept of what a guest writes to standard error."""
_CELLS = 512
"""Cells of a picture of a guest's memory."""
_OVERHEAD = 64 << 20
"""Device memory of a guest, beside its context."""


class Completion:
    """It can be run once, and stopped at any time."""

    def __init__(self, program: Program, model: Model, request: Request, limits: ServerLimits, owner: str = "") -> None:
        """``owner``: whose request it is. Those of one owner share what their prompts begin with."""
        self.counters = Counters()
        """What the guest has cost, once it has ended."""
        self.owner = owner
        self.model_name = model.name
        self.tokens = 0
        """That have been made."""
        self.begun = 0.0
        """When it began to run, by ``time.monotonic``."""
        self._prompt = len(request.prompt)
        self._phase = "waiting"
        self._first = self._ended = 0.0
        self._map: MemoryMap | None = None
        self._program = program
        self._model = model
        self._unread = request.encode()
        """Of the guest's input."""
        self._constraint: Constraint | None = None
        if request.grammar:
            self._constraint = Constraint(request.grammar, model.tokenizer, cut=bool(request.stops))
        self._limits = Limits(
            memory_bytes=limits.memory_bytes,
            device_bytes=_OVERHEAD + model.context_length * model.cache.position_bytes,
            wall_seconds=limits.seconds,
        )
        self._guest: Guest | None = None
        self._stopped = False
        self._errors = b""

    def run(self, emit: Callable[[list[Token]], object]) -> End:
        """Run the guest to its end; ``emit`` gets the tokens that it writes at a time.

        Raises WasmetalError if it fails, or is stopped; ApiError if the request's grammar cannot be gone on with.
        """
        reader, end = ReplyReader(), None

        def stdout(data: bytes) -> None:
            nonlocal end
            tokens: list[Token] = []
            for record in reader.feed(data):
                if self._constraint:
                    self._constraint.check(record)
                if isinstance(record, End):
                    end = record
                elif isinstance(record, Token):
                    tokens.append(record)
            if tokens:
                self._made(len(tokens))
                emit(tokens)

        self.begun, self._phase = time.monotonic(), "prompt"
        with Guest(
            self._program,
            models={"default": self._model},
            prefixes=self.owner,
            limits=self._limits,
            stdin=self._read,
            stdout=stdout,
            stderr=self._add_error,
        ) as guest:
            self._guest = guest
            if self._stopped:  # when there was no guest yet
                guest.stop()
            try:
                code = guest.run()
            finally:
                self.counters, cached = guest.counters, guest.reused_tokens
                self._map, self._guest = guest.memory_map(), None
                self._ended, self._phase = time.monotonic(), "stopped" if self._stopped else "ended"
        if code or not end:
            lines = self._errors.decode(errors="replace").splitlines()
            raise GuestError(lines[-1] if lines else f"the guest ended with exit code {code}, and no end of its text")
        return replace(end, cached=cached)

    def stop(self) -> None:
        """Stop the guest, from any thread: at its next token, or sooner."""
        self._stopped = True
        if guest := self._guest:
            guest.stop()

    def _read(self, most: int) -> bytes:
        """What the guest reads: the request, and then masks."""
        if not self._unread and self._constraint:
            self._unread = self._constraint.mask()
        data, self._unread = self._unread[:most], self._unread[most:]
        return data

    def cost(self) -> Counters:
        """What the guest has cost so far. From any thread, as :meth:`state`."""
        guest = self._guest
        return guest.counters if guest else self.counters

    def state(self) -> dict[str, Any]:
        """What it is doing, and what it has used, for JSON."""
        guest, now = self._guest, self._ended or time.monotonic()
        memory = guest.memory_map() if guest else self._map
        cost = self.cost()
        return {
            "model": self.model_name,
            "state": self._phase,
            "prompt_tokens": self._prompt,
            "tokens": self.tokens,
            "seconds": round(now - self.begun, 3) if self.begun else 0.0,
            "tokens_per_second": round((self.tokens - 1) / (now - self._first), 2) if self.tokens > 1 else None,
            "device_seconds": round(cost.device_seconds, 4),
            "bytes_copied": cost.bytes_copied,
            "bytes_shared": cost.bytes_shared,
            "memory": memory and {
                "bytes": memory.nbytes,
                "apertures": memory.apertures,
                "cells": memory.cells(_CELLS),
            },
        }  # fmt: skip

    def _made(self, tokens: int) -> None:
        if not self.tokens:
            self._first, self._phase = time.monotonic(), "decoding"
        self.tokens += tokens

    def _add_error(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-_MOST_ERRORS:]
