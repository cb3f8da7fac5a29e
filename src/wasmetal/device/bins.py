"""Spreading items over containers of limited size."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

B = TypeVar("B")


class Bins(Generic[B]):
    """Items spread over at most ``most`` containers of at most ``capacity`` bytes.

    A container only exceeds its capacity by an item that is longer, or when no container can be added.
    """

    def __init__(self, capacity: int, most: int, make: Callable[[], B | None]) -> None:
        """``make`` returns another container, or None if there can be no more; the first is made at once."""
        self._capacity = capacity
        self._most = most
        self._make = make
        self._bins: list[B] = []
        self._nbytes: list[int] = []
        self._items: dict[Hashable, tuple[int, int]] = {}
        self._grow()

    @property
    def bins(self) -> list[B]:
        """All containers; none if ``make`` never returned one."""
        return self._bins

    @property
    def used(self) -> list[B]:
        """The containers that hold any item."""
        return [each for each, nbytes in zip(self._bins, self._nbytes, strict=True) if nbytes]

    def add(self, item: Hashable, nbytes: int) -> B:
        """Add an item of ``nbytes`` > 0; return its container: one with room, else a new one, else the least full."""
        room = (i for i, held in enumerate(self._nbytes) if held == 0 or held + nbytes <= self._capacity)
        index = next(room, None)
        if index is None:
            index = len(self._bins) - 1 if self._grow() else min(range(len(self._nbytes)), key=self._nbytes.__getitem__)
        self._nbytes[index] += nbytes
        self._items[item] = index, nbytes
        return self._bins[index]

    def remove(self, item: Hashable) -> B:
        """Remove an item; return the container that held it."""
        index, nbytes = self._items.pop(item)
        self._nbytes[index] -= nbytes
        return self._bins[index]

    def _grow(self) -> bool:
        made = self._make() if len(self._bins) < self._most else None
        if made is not None:
            self._bins.append(made)
            self._nbytes.append(0)
        return made is not None
