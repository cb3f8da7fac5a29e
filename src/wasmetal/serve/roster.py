"""Who is here: completions that run or wait, and the last that have ended, for those who watch."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

from wasmetal.counters import Counters
from wasmetal.serve.completion import Completion
from wasmetal.serve.turn import Turn

_ENDED = 12
"""How many that have ended are remembered, for each owner."""


class Roster:
    """For one event loop."""

    def __init__(self) -> None:
        self._here: dict[Completion | Turn, int] = {}
        self._ended: dict[str, deque[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._total = Counters()

    def add(self, completion: Completion | Turn) -> None:
        """It waits for its turn."""
        self._here[completion] = next(self._numbers)

    def remove(self, completion: Completion | Turn) -> None:
        """It has ended, or will never begin."""
        number = self._here.pop(completion)
        self._total.add(completion.counters)
        rows = self._ended.setdefault(completion.owner, deque(maxlen=_ENDED))
        rows.appendleft({"id": number} | completion.state())

    def has(self, model: str) -> bool:
        """Whether completions of a model run or wait."""
        return any(each.model_name == model for each in self._here)

    def here(self, owner: str) -> list[dict[str, Any]]:
        """What those of an owner are doing, oldest first."""
        return [{"id": number} | each.state() for each, number in self._here.items() if each.owner == owner]

    def ended(self, owner: str) -> list[dict[str, Any]]:
        """What the last of an owner's have done, latest first."""
        return list(self._ended.get(owner, ()))

    def counters(self) -> Counters:
        """What all of them have cost, those that run included."""
        total = Counters()
        total.add(self._total)
        for each in self._here:
            total.add(each.cost())
        return total
