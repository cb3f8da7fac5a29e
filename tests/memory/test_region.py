"""Regions: what is accessible, what faults, how they grow, and when their pages go."""

import gc
import itertools
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.pages import Pages, page_size
from wasmetal.memory.region import Region

PAGE = page_size()


def test_page_size_is_the_systems() -> None:
    assert os.sysconf("SC_PAGE_SIZE") == PAGE


def test_a_region_is_zero_and_writable_and_page_aligned() -> None:
    region = Region(capacity=8 * PAGE, size=2 * PAGE)
    assert (region.size, region.capacity, region.address % PAGE) == (2 * PAGE, 8 * PAGE, 0)
    view = region.view()
    assert view.shape == (2 * PAGE,)
    assert view.dtype == np.uint8
    assert view.ctypes.data == region.address
    assert not view.any()
    view[:] = 1
    assert region.view().sum() == 2 * PAGE


@pytest.mark.parametrize("size", [0, 1, 3, 8])
def test_exactly_the_size_is_accessible(size: int, access: Callable[[int], str]) -> None:
    region = Region(capacity=8 * PAGE, size=size * PAGE, guard=2 * PAGE)
    seen = [access(region.address + page * PAGE) for page in range(10)]
    assert seen == ["rw-p"] * size + ["---p"] * (10 - size)


@pytest.mark.parametrize(
    ("offset", "faults"), [(2 * PAGE - 1, False), (2 * PAGE, True), (4 * PAGE, True), (5 * PAGE - 1, True)]
)
@pytest.mark.parametrize("touch", ["string_at(address, 1)", "memset(address, 1, 1)"])
def test_bytes_past_the_size_fault(
    offset: int, faults: bool, touch: str, python: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    run = python(
        "from ctypes import memset, string_at\n"
        "from wasmetal.memory.region import Region\n"
        f"region = Region(capacity={4 * PAGE}, size={PAGE}, guard={PAGE})\n"
        f"region.grow({2 * PAGE})\n"
        f"address = region.address + {offset}\n"
        f"{touch}\n"
    )
    if faults:
        assert run.returncode in (-signal.SIGSEGV, -signal.SIGBUS)
    else:
        assert (run.returncode, run.stderr) == (0, "")


def test_growth_is_in_place_and_keeps_what_was_there(access: Callable[[int], str]) -> None:
    region = Region(capacity=64 * PAGE)
    address = region.address
    views, apertures = [], []
    for pages in range(1, 65):
        region.grow(pages * PAGE)
        assert access(address + pages * PAGE - 1) == "rw-p"
        assert not region.view()[-PAGE:].any()
        region.view()[-PAGE:] = pages
        views.append(region.view())
        apertures.append(region.aperture((pages - 1) * PAGE, PAGE))
    assert region.address == address
    for pages, (view, aperture) in enumerate(zip(views, apertures, strict=True), start=1):
        assert len(view) == pages * PAGE
        assert (view[-PAGE:] == pages).all()
        assert (aperture.view() == pages).all()
        assert aperture.address == address + (pages - 1) * PAGE
    views[-1][:] = 200
    assert (views[0] == 200).all()
    assert (apertures[0].view() == 200).all()


def test_one_large_growth() -> None:
    region = Region(capacity=4 << 30, size=PAGE)
    first = region.view()
    first[-1] = 7
    region.grow(4 << 30)
    whole = region.view()
    whole[-1] = 9
    assert (len(whole), whole[PAGE - 1], whole[PAGE], whole[-1]) == (4 << 30, 7, 0, 9)
    assert first[-1] == 7


@pytest.mark.parametrize(
    ("capacity", "size", "guard"),
    [
        (PAGE + 1, 0, 0),
        (PAGE, 1, 0),
        (PAGE, 0, PAGE // 2),
        (-PAGE, 0, 2 * PAGE),
        (PAGE, -PAGE, 0),
        (PAGE, 0, -PAGE),
        (PAGE, 2 * PAGE, 0),
        (0, 0, 0),
        (1 << 62, 0, 0),
        ((1 << 63) - PAGE, 0, 0),
        (1 << 63, 0, 0),
        ((1 << 64) + PAGE, 0, 0),
        (1 << 63, 0, 1 << 63),
    ],
)
def test_a_region_that_cannot_be_is_refused(capacity: int, size: int, guard: int) -> None:
    with pytest.raises(MemoryRefusedError) as refusal:
        Region(capacity, size, guard)
    assert "\n" not in str(refusal.value)


def test_the_systems_reason_is_told() -> None:
    with pytest.raises(MemoryRefusedError, match="Cannot allocate memory"):
        Region(capacity=1 << 62)


def test_refused_growth_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region(capacity=4 * PAGE, size=2 * PAGE)
    for size in (5 * PAGE, PAGE, 2 * PAGE + 1, -PAGE, 1 << 70):
        with pytest.raises(MemoryRefusedError):
            region.grow(size)
        assert region.size == 2 * PAGE

    def no_memory(pages: Pages, start: int, end: int) -> None:
        raise MemoryRefusedError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Pages, "open", no_memory)
        with pytest.raises(MemoryRefusedError, match="no memory"):
            region.grow(4 * PAGE)
    assert region.size == 2 * PAGE
    region.grow(2 * PAGE)
    region.grow(4 * PAGE)
    assert region.size == 4 * PAGE


def test_opening_pages_that_are_not_ours_is_refused_with_the_systems_reason() -> None:
    with pytest.raises(MemoryRefusedError, match=r"Cannot allocate memory|Invalid argument"):
        Pages(PAGE).open(1 << 46, (1 << 46) + PAGE)


def test_a_closed_region_refuses() -> None:
    region = Region(capacity=4 * PAGE, size=PAGE)
    region.close()
    region.close()
    for use in (region.view, lambda: region.grow(2 * PAGE), lambda: region.aperture(0, PAGE)):
        with pytest.raises(MemoryRefusedError, match="the region is closed"):
            use()


def test_a_closed_aperture_refuses() -> None:
    aperture = Region(capacity=PAGE, size=PAGE).aperture(0, PAGE)
    aperture.close()
    aperture.close()
    with pytest.raises(MemoryRefusedError, match="the aperture is closed"):
        aperture.view()


@pytest.mark.parametrize("order", list(itertools.permutations(["region", "aperture", "view", "slice"])))
@pytest.mark.parametrize("close", [True, False], ids=["close", "drop"])
def test_the_last_holder_unmaps(order: tuple[str, ...], close: bool, access: Callable[[int], str]) -> None:
    region = Region(capacity=16 * PAGE, size=2 * PAGE)
    holders = {"region": region, "aperture": region.aperture(PAGE, PAGE), "view": region.view()}
    holders["slice"] = holders["view"][PAGE:].view(np.uint32)[::2]
    address = region.address
    del region
    for name in order:
        assert access(address) == "rw-p"
        holder = holders.pop(name)
        if close and not isinstance(holder, np.ndarray):
            holder.close()
        del holder
    gc.collect()
    assert access(address) == ""


SIZE = 8 * PAGE
hostile = st.one_of(
    st.integers(),
    st.integers(-2 * PAGE, SIZE + 2 * PAGE),
    st.integers(-2, 10).map(lambda pages: pages * PAGE),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, 2**64 + PAGE, 2**64 - PAGE, -(2**63), 10**30]),
)
region_of_eight = Region(capacity=16 * PAGE, size=SIZE)


@given(hostile, hostile)
def test_an_aperture_is_whole_pages_inside_the_size_or_refused(offset: int, nbytes: int) -> None:
    if offset in range(0, SIZE, PAGE) and nbytes in range(PAGE, SIZE - offset + 1, PAGE):
        aperture = region_of_eight.aperture(offset, nbytes)
        assert (aperture.region, aperture.offset, aperture.nbytes) == (region_of_eight, offset, nbytes)
        assert aperture.address == region_of_eight.address + offset
        assert aperture.view().ctypes.data == aperture.address
        assert aperture.view().shape == (nbytes,)
    else:
        with pytest.raises(MemoryRefusedError) as refusal:
            region_of_eight.aperture(offset, nbytes)
        assert "\n" not in str(refusal.value)


@given(hostile, hostile)
def test_the_covering_aperture_is_the_pages_that_hold_the_bytes(offset: int, nbytes: int) -> None:
    if offset in range(SIZE) and nbytes in range(1, SIZE - offset + 1):
        aperture = region_of_eight.covering(offset, nbytes)
        first, last = offset // PAGE, (offset + nbytes - 1) // PAGE
        assert aperture.offset == first * PAGE
        assert aperture.nbytes == (last - first + 1) * PAGE
        assert aperture.view().shape == (aperture.nbytes,)
    else:
        with pytest.raises(MemoryRefusedError):
            region_of_eight.covering(offset, nbytes)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_numpy_integers_do_not_wrap_around(offset: int, nbytes: int) -> None:
    inside = nbytes > 0 and offset + nbytes <= SIZE
    try:
        region_of_eight.covering(np.uint64(offset), np.uint64(nbytes))  # type: ignore[arg-type]
    except MemoryRefusedError:
        assert not inside
    else:
        assert inside


@pytest.mark.parametrize("offset", [0.0, "0", None])
def test_what_is_no_integer_is_a_type_error(offset: object) -> None:
    with pytest.raises(TypeError):
        region_of_eight.aperture(offset, PAGE)  # type: ignore[arg-type]


def test_pages_that_take_room() -> None:
    region = Region(capacity=8 * PAGE, size=4 * PAGE)
    assert region.pages.resident(4 * PAGE).tolist() == [False] * 4
    region.view()[2 * PAGE] = 1
    assert region.pages.resident(4 * PAGE).tolist() == [False, False, True, False]
    assert region.pages.resident(0).tolist() == []


def test_populated_pages_are_zero_and_take_room() -> None:
    region = Region(capacity=8 * PAGE, size=4 * PAGE)
    region.view()[2 * PAGE] = 7
    region.populate(PAGE, 3 * PAGE)
    if sys.platform == "linux" and tuple(map(int, platform.release().split(".")[:2])) >= (5, 14):
        assert region.pages.resident(4 * PAGE).tolist() == [False, True, True, False]
    assert region.view()[2 * PAGE] == 7
    assert not region.view()[PAGE : 2 * PAGE].any()
