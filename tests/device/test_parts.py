"""The arithmetic of splitting a range into overlapping parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wasmetal.device.parts import Parts

PAGE = 4096


@given(data=st.data())
def test_a_binding_lies_in_one_part(data: st.DataObject) -> None:
    longest = data.draw(st.integers(2, 50))
    binding = data.draw(st.integers(1, longest // 2))
    pages = data.draw(st.integers(1, 400))
    parts = Parts(pages * PAGE, longest * PAGE, binding * PAGE)
    for part in range(len(parts)):
        start, stop = parts.range(part)
        assert 0 <= start < stop <= pages * PAGE
        assert stop - start <= longest * PAGE
    offset = data.draw(st.integers(0, pages * PAGE - 1))
    nbytes = data.draw(st.integers(1, min(binding * PAGE, pages * PAGE - offset)))
    start, stop = parts.range(parts.holding(offset))
    assert start <= offset
    assert offset + nbytes <= stop
