"""Splitting a range of bytes over buffers, and bindings that cross a boundary between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wasmetal.device.parts import Parts


@given(granule=st.integers(1, 8), pages=st.integers(1, 600), most=st.integers(1, 90), data=st.data())
def test_a_binding_lies_whole_in_its_buffer(granule: int, pages: int, most: int, data: st.DataObject) -> None:
    nbytes, longest = granule * pages, granule * most
    parts = Parts(nbytes, longest, granule, lambda start, stop: (start, stop))
    parts.fill()
    whole = list(parts.buffers)
    assert [byte for start, stop in whole for byte in range(start, stop)] == list(range(nbytes))
    assert max(stop - start for start, stop in whole) <= longest
    offset = data.draw(st.integers(0, nbytes - 1))
    bound = data.draw(st.integers(1, nbytes - offset))
    for _ in range(2):
        (start, stop), at = parts.bind(offset, bound)
        assert start + at == offset
        assert offset + bound <= stop <= nbytes
        assert start % granule == stop % granule == 0
    crosses = offset // longest < (offset + bound - 1) // longest
    assert len(parts.buffers) == len(whole) + crosses
    assert parts.buffers[: len(whole)] == whole
