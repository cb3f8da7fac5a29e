"""What of an actor is bytes elsewhere: chunks, by their digests."""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from wasmetal.actor.json_fields import array, check, hexadecimal, integer

MAX_CHUNK = 1 << 30


@dataclass(frozen=True, slots=True, order=True)
class Chunk:
    """Bytes elsewhere. In JSON, ``[digest, size]``."""

    digest: str
    """See :func:`wasmetal.actor.chunks.digest_of`."""
    size: int

    def to_json(self) -> list[Any]:
        return [self.digest, self.size]

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        pair = array(what, value)
        check(what, len(pair) == 2, value)
        return cls(hexadecimal(f"{what}'s digest", pair[0], 32), integer(f"{what}'s size", pair[1], 1, MAX_CHUNK))


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of ``size`` bytes, but for the last, at multiples of it. Those that are not named are as they were anew.

    In JSON, ``[[index, digest or null], ...]`` in ascending order; null: the piece is zero.
    """

    named: tuple[tuple[int, Chunk | None], ...] = ()

    def to_json(self) -> list[Any]:
        return [[index, chunk and chunk.to_json()] for index, chunk in self.named]

    @classmethod
    def from_json(cls, what: str, value: object, total: int, size: int) -> Self:
        """``total``: bytes of all pieces together."""
        named: list[tuple[int, Chunk | None]] = []
        for pair in array(what, value, -(-total // size)):
            check(what, isinstance(pair, list) and len(pair) == 2, pair)
            least = named[-1][0] + 1 if named else 0
            index = integer(f"{what}: a piece's index", pair[0], least, -(-total // size) - 1)
            chunk = None if pair[1] is None else Chunk.from_json(f"{what}: piece {index}", pair[1])
            if chunk:
                check(f"{what}: the size of piece {index}", chunk.size == min(size, total - index * size), chunk.size)
            named.append((index, chunk))
        return cls(tuple(named))

    def chunks(self) -> Iterator[Chunk]:
        """The chunks."""
        return (chunk for _, chunk in self.named if chunk)
