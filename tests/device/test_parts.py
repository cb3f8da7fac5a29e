"""The arithmetic of splitting a range into parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wasmetal.device.parts import Parts


@given(nbytes=st.integers(1, 5000), longest=st.integers(1, 700), data=st.data())
def test_a_binding_lies_whole_in_its_part(nbytes: int, longest: int, data: st.DataObject) -> None:
    parts = Parts(nbytes, longest)
    ranges = parts.ranges()
    assert [byte for start, stop in ranges for byte in range(start, stop)] == list(range(nbytes))
    assert max(stop - start for start, stop in ranges) <= longest
    offset = data.draw(st.integers(0, nbytes - 1))
    bound = data.draw(st.integers(1, nbytes - offset))
    whole = [part for part, (start, stop) in enumerate(ranges) if start <= offset and offset + bound <= stop]
    assert parts.holding(offset, bound) == (whole[0] if whole else None)
