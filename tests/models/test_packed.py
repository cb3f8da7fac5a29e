"""A vocabulary's strings, packed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmetal.models.packed import Packed


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.slices(10))
def test_as_a_list(strings: list[str], part: slice) -> None:
    for packed, expected in (
        (Packed(map(str.encode, strings), bytes.decode), strings),
        (Packed([string.encode() for string in strings], bytes), [string.encode() for string in strings]),
    ):
        count = len(expected)
        assert len(packed) == count
        assert list(packed) == expected == [packed[i] for i in range(count)]
        assert [packed[i] for i in range(-count, 0)] == expected
        assert packed[part] == expected[part]
        assert all(packed.index(each) == expected.index(each) for each in expected)
        for outside in (count, -count - 1, 1 << 70):
            with pytest.raises(IndexError):
                packed[outside]
