"""Values from JSON that may be hostile: each is checked for its type and range when it is taken."""

from __future__ import annotations

import re
from collections.abc import Callable
from reprlib import Repr
from typing import Any, TypeVar

from wasmetal.errors import SnapshotError, printable

T = TypeVar("T")

MOST = 1 << 62
"""The largest number of bytes, or of anything, that is taken."""
_brief = Repr()
_brief.maxstring = _brief.maxother = 70
_HEX = re.compile("[0-9a-f]*")


def check(what: str, fits: bool, value: object) -> None:
    """Raise SnapshotError unless the value fits."""
    if not fits:
        raise SnapshotError(f"the snapshot's manifest is damaged: {what} is {printable(_brief.repr(value))}")


def integer(what: str, value: object, least: int, most: int) -> int:
    """An integer from ``least`` to ``most``."""
    check(what, type(value) is int and least <= value <= most, value)
    return value  # type: ignore[return-value]


def seconds(what: str, value: object) -> float:
    """A time of 0 seconds or more; less than 2^63 nanoseconds."""
    check(what, type(value) in (int, float) and 0 <= value < 9e9, value)  # type: ignore[operator]
    return float(value)  # type: ignore[arg-type]


def text(what: str, value: object, most: int = 4096) -> str:
    """A string of at most so many bytes in UTF-8, without zeros, which no name of the system has."""
    check(what, isinstance(value, str) and len(value) <= most and "\0" not in value, value)
    assert isinstance(value, str)
    try:
        check(what, len(value.encode()) <= most, value)
    except UnicodeEncodeError:
        check(what, False, value)
    return value


def hexadecimal(what: str, value: object, nbytes: int) -> str:
    """So many bytes in lower-case hexadecimal digits."""
    check(what, isinstance(value, str) and len(value) == 2 * nbytes and bool(_HEX.fullmatch(value)), value)
    return value  # type: ignore[return-value]


def array(what: str, value: object, most: int = 1 << 32) -> list[Any]:
    """An array of at most so many elements."""
    check(what, isinstance(value, list) and len(value) <= most, value)
    return value  # type: ignore[return-value]


def mapping(what: str, value: object) -> dict[str, Any]:
    """An object, whose keys are texts."""
    check(what, isinstance(value, dict), value)
    assert isinstance(value, dict)
    for key in value:
        text(f"a key of {what}", key)
    return value


def optional(what: str, value: object, read: Callable[..., T], *bounds: Any) -> T | None:
    """What ``read(what, value, *bounds)`` gives; None for null."""
    return None if value is None else read(what, value, *bounds)


def tuple_of(what: str, value: object, read: Callable[..., T]) -> tuple[T, ...]:
    """The elements of an array, as ``read(what, element)`` gives each."""
    return tuple(read(f"{what}[{index}]", each) for index, each in enumerate(array(what, value)))


def values_of(what: str, value: object, read: Callable[..., T]) -> dict[str, T]:
    """An object, with its values as ``read(what, value)`` gives each."""
    return {name: read(f"{what}.{name}", each) for name, each in mapping(what, value).items()}


class Fields:
    """The members of an object, each of which must be taken, and no others be there."""

    def __init__(self, what: str, value: object) -> None:
        self.what = what
        self._left = dict(mapping(what, value))

    def take(self, name: str, read: Callable[..., T], *bounds: Any) -> T:
        """A member, as ``read(what, value, *bounds)`` gives it."""
        if name not in self._left:
            raise SnapshotError(f"the snapshot's manifest is damaged: {self.what} has no {name}")
        return read(f"{self.what}.{name}", self._left.pop(name), *bounds)

    def end(self) -> None:
        """Raise SnapshotError if members are left."""
        if self._left:
            name = printable(next(iter(self._left)))
            raise SnapshotError(f"the snapshot's manifest is damaged: {self.what} has an unknown {name}")
