"""A vocabulary's strings in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class Packed(Sequence[T], Generic[T]):
    """Strings as bytes one after the other: objects of their own would take about five times the memory.

    ``decode`` makes of the bytes of each what the sequence gives.
    """

    def __init__(self, strings: Iterable[bytes], decode: Callable[[bytes], T]) -> None:
        packed, self.ends = bytearray(), array("I")
        """Where each ends in ``data``."""
        for string in strings:
            packed += string
            self.ends.append(len(packed))
        self.data = bytes(packed)
        """The bytes of all."""
        self._decode = decode

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[T]:
        begin = 0
        for end in self.ends:
            yield self._decode(self.data[begin:end])
            begin = end

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        return self._decode(self.data[self.ends[i - 1] if i else 0 : self.ends[i]])
