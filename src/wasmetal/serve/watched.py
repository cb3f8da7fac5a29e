"""What those who watch are told of work for a request, while it waits, runs and has ended."""

from __future__ import annotations

import time
from typing import Any

from wasmetal.counters import Counters
from wasmetal.host.memory_map import MemoryMap

_CELLS = 512
"""Cells of a picture of a guest's memory."""


class Watched:
    """A base for what runs on one thread, and is looked at from others."""

    def __init__(self, model_name: str, owner: str, prompt: int) -> None:
        """``owner``: whose request it is. ``prompt``: the tokens of its prompt, as far as they are known."""
        self.model_name, self.owner = model_name, owner
        self.counters = Counters()
        """What it has cost, once it has ended."""
        self.tokens, self.prompt_tokens = 0, prompt
        self.begun = 0.0
        """When it began to run, by ``time.monotonic``."""
        self._phase = "waiting"
        self._first = self._ended = 0.0

    def cost(self) -> Counters:
        """What it has cost so far. From any thread, as the rest."""
        return self.counters

    def memory_map(self) -> MemoryMap | None:
        """Its guest's memory, at the moment or at the end."""
        return None

    def state(self) -> dict[str, Any]:
        """What it is doing, and what it has used, for JSON."""
        now, memory, cost = self._ended or time.monotonic(), self.memory_map(), self.cost()
        return {
            "model": self.model_name,
            "state": self._phase,
            "prompt_tokens": self.prompt_tokens,
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

    def _begins(self) -> None:
        self.begun, self._phase = time.monotonic(), "prompt"

    def _made(self) -> None:
        """A token."""
        self.tokens += 1
        if self.tokens == 1:
            self._first, self._phase = time.monotonic(), "decoding"

    def _ends(self, *, stopped: bool) -> None:
        self._ended, self._phase = time.monotonic(), "stopped" if stopped else "ended"
