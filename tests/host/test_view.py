from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.view import GuestMemory
from wasmetal.memory import Region, page_size

SIZE = 4 * 65536
region = Region(capacity=8 * 65536, size=SIZE)
memory = GuestMemory(region, memory64=False)

# Where it hurts: around 0, the end, and the limits of the integer types.
edges = st.sampled_from([0, SIZE, 2**31, 2**32, 2**63, 2**64])
hostile = st.one_of(
    st.builds(lambda edge, by: max(edge + by, 0), edges, st.integers(-70000, 70000)), st.integers(0, 2**64 - 1)
)


@given(hostile, hostile, st.sampled_from(["u1", "<u2", "<u4", "<u8", "<f4"]))
def test_array_is_inside_or_refused(ptr: int, count: int, dtype: str) -> None:
    itemsize = np.dtype(dtype).itemsize
    if ptr % itemsize:
        expected = Errno.INVAL
    elif ptr + count * itemsize > SIZE:
        expected = Errno.FAULT
    else:
        array = memory.array(ptr, count, dtype)
        assert array.ctypes.data == region.address + ptr or count == 0
        assert array.nbytes == count * itemsize
        return
    with pytest.raises(Refusal) as refusal:
        memory.array(ptr, count, dtype)
    assert refusal.value.errno is expected


@given(hostile, hostile)
def test_pages_are_whole_and_inside_or_refused(ptr: int, nbytes: int) -> None:
    page = page_size()
    if ptr % page == 0 and nbytes % page == 0 and 0 < nbytes <= SIZE - ptr:
        aperture = memory.pages(ptr, nbytes, page)
        assert (aperture.address, aperture.nbytes) == (region.address + ptr, nbytes)
        return
    with pytest.raises(Refusal) as refusal:
        memory.pages(ptr, nbytes, page)
    assert refusal.value.errno in (Errno.INVAL, Errno.FAULT)


@given(hostile, st.integers(1, SIZE), st.sampled_from([page_size(), 16384, 65536]))
def test_covering_holds_the_range_and_no_page_more(ptr: int, nbytes: int, page: int) -> None:
    if ptr % 16 or ptr + nbytes > SIZE:
        with pytest.raises(Refusal):
            memory.covering(ptr, nbytes, 16, page)
        return
    aperture = memory.covering(ptr, nbytes, 16, page)
    end = aperture.offset + aperture.nbytes
    assert aperture.offset % page == 0
    assert end % page == 0
    assert ptr - page < aperture.offset <= ptr
    assert ptr + nbytes <= end < ptr + nbytes + page
    assert end <= SIZE


def test_size_is_as_wide_as_an_address() -> None:
    assert memory.size(8).itemsize == 4
    assert GuestMemory(region, memory64=True).size(8).itemsize == 8


def test_views_follow_growth() -> None:
    grown = Region(capacity=2 * 65536, size=65536)
    view = GuestMemory(grown, memory64=False)
    with pytest.raises(Refusal):
        view.array(65536, 1)
    grown.grow(2 * 65536)
    view.array(65536, 65536)[:] = 7
    assert grown.view()[-1] == 7
