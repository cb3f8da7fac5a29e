"""Numbers that follow one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def stretches(numbers: Iterable[int], most: int) -> Iterator[tuple[int, int]]:
    """Ascending numbers as stretches of consecutive ones, at most so many: the first, and the one after the last."""
    begin = end = 0
    for number in numbers:
        if begin < end and (number != end or end - begin == most):
            yield begin, end
            begin = number
        elif begin == end:
            begin = number
        end = number + 1
    if begin < end:
        yield begin, end
