"""Handles: the numbers by which one guest names what the host holds for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from wasmetal.host.errno import Errno, Refusal

T = TypeVar("T")

_INDEX_BITS = 20
_SLOTS = 1 << (_INDEX_BITS - 1)
_GENERATIONS = 1 << (32 - _INDEX_BITS)


class Handles:
    """One guest's handles.

    A handle is a slot's index and the slot's generation, which is incremented when the handle is freed; a slot whose
    generations are used up retires. So no number is issued twice, and a stale one never names another object. ``key``
    (32 bits, different for each guest) is mixed in, so that another guest's numbers are meaningless here.
    """

    def __init__(self, limit: int, key: int) -> None:
        self.limit = min(limit, _SLOTS)
        self._key = key | _SLOTS  # no index has this bit, so no handle is 0
        self._objects: list[object | None] = []
        self._generations: list[int] = []
        self._free: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[object]:
        """The objects that are held."""
        return (held for held in self._objects if held is not None)

    def check_room(self) -> None:
        """Raise MFILE if :meth:`add` would. Called before the handle's object is made."""
        if self._count >= self.limit or (not self._free and len(self._objects) == _SLOTS):
            raise Refusal(Errno.MFILE, f"limit reached: {self.limit} handles")

    def add(self, held: object) -> int:
        """A new handle."""
        self.check_room()
        if self._free:
            index = self._free.pop()
        else:
            index = len(self._objects)
            self._objects.append(None)
            self._generations.append(0)
        self._objects[index] = held
        self._count += 1
        return self.handle(index)

    def hold(self) -> None:
        """Count something that has a name of its own, such as an open file. Raises MFILE like :meth:`add`."""
        self.check_room()
        self._count += 1

    def release(self) -> None:
        """Count one less of what :meth:`hold` counted."""
        self._count -= 1

    def get(self, handle: int, kind: type[T]) -> T:
        """The object that a handle names; BADF for anything but a live handle of that kind."""
        held = self._objects[self._index(handle)]
        if not isinstance(held, kind):
            raise Refusal(Errno.BADF, f"handle {handle:#x} names no {kind.__name__.lower()}")
        return held

    def remove(self, handle: int) -> None:
        """Free a handle. BADF if it is not live."""
        index = self._index(handle)
        self._objects[index] = None
        self._count -= 1
        self._generations[index] += 1
        if self._generations[index] < _GENERATIONS:
            self._free.append(index)

    def items(self) -> Iterator[tuple[int, object]]:
        """What is held, by the index of its slot, in ascending order."""
        return ((index, held) for index, held in enumerate(self._objects) if held is not None)

    def handle(self, index: int) -> int:
        """The handle of what is held in a slot."""
        return (self._generations[index] << _INDEX_BITS | index) ^ self._key

    def save(self) -> tuple[int, list[int], list[int]]:
        """The key, the generation of each slot, and the free slots, for :meth:`load`."""
        return self._key & ~_SLOTS, list(self._generations), list(self._free)

    def load(self, key: int, generations: Sequence[int], free: Sequence[int]) -> None:
        """Take over what :meth:`save` gave, before anything is held; what is to be held is given to :meth:`put`."""
        self._key = key | _SLOTS
        self._objects = [None] * len(generations)
        self._generations, self._free = list(generations), list(free)

    def put(self, index: int, held: object) -> None:
        """Hold something in a slot that is neither taken nor free, under the handle that the slot has."""
        self._objects[index] = held
        self._count += 1

    def _index(self, handle: int) -> int:
        generation, index = divmod(handle ^ self._key, 1 << _INDEX_BITS)
        if index >= len(self._objects) or generation != self._generations[index] or self._objects[index] is None:
            raise Refusal(Errno.BADF, f"handle {handle:#x} is not live")
        return index
