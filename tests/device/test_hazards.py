"""The need for barriers, against the definition applied byte by byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wasmetal.device.hazards import Hazards, RangeSet
from wasmetal.kernels.catalog import Access

ranges = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda r: (r[0], r[0] + r[1]))
touches = st.builds(
    lambda access, space, r: (access, space, *r), st.sampled_from(Access), st.sampled_from("ab"), ranges
)
dispatches = st.lists(st.lists(touches, min_size=1, max_size=4), max_size=12)


@given(st.lists(ranges, max_size=20), ranges)
def test_range_set(added, asked) -> None:
    found = RangeSet()
    numbers: set[int] = set()
    for start, stop in added:
        found.add(start, stop)
        numbers |= set(range(start, stop))
    assert found.meets(*asked) == bool(numbers & set(range(*asked)))


@given(dispatches)
def test_barriers_where_bytes_meet(program) -> None:
    hazards = Hazards()
    read: set[tuple[str, int]] = set()
    written: set[tuple[str, int]] = set()
    for dispatch in program:
        reads = {
            (s, i) for access, s, start, stop in dispatch if access is not Access.WRITE for i in range(start, stop)
        }
        writes = {
            (s, i) for access, s, start, stop in dispatch if access is not Access.READ for i in range(start, stop)
        }
        needed = bool(written & (reads | writes) or read & writes)
        assert hazards.needs_barrier(dispatch) == needed
        if needed:
            read, written = set(), set()
        read |= reads
        written |= writes
