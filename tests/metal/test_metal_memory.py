"""Wrapped pages: never a copy, whatever Metal returns; split if too long; released with their last user."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from tests.device.harness import recorded
from tests.metal.devices import EMULATED
from tests.metal.standin import Gpu
from wasmetal.device import Binding, Device, MemoryKind
from wasmetal.errors import DeviceError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

pytestmark = pytest.mark.usefixtures("tried")

PAGE = page_size()
MIB = 1 << 20


@pytest.fixture
def region():
    made = Region(64 * MIB, 64 * MIB)
    yield made
    made.close()


@pytest.mark.parametrize("fault", ["nil_buffer", "empty_buffer", "copied_buffer"])
def test_a_wrap_is_those_pages_or_an_error(gpu: Gpu, emulated: Device, region: Region, fault: str) -> None:
    setattr(gpu, fault, True)
    with pytest.raises(WrapRefusedError, match="host pages"):
        emulated.wrap(region.aperture(0, PAGE))
    with pytest.raises(OutOfDeviceMemoryError):
        emulated.allocate(PAGE)
    assert emulated.counters.bytes_shared == 0
    setattr(gpu, fault, False)
    assert emulated.wrap(region.aperture(0, PAGE)).address == region.address


def test_what_metal_will_not_take(gpu: Gpu, emulated: Device) -> None:
    with pytest.raises(OutOfDeviceMemoryError, match=str(gpu.working_set)):
        emulated.allocate(gpu.working_set + 1)
    with pytest.raises(DeviceError):
        emulated.allocate(0)


def test_a_closed_buffer_is_gone(gpu: Gpu, emulated: Device, region: Region) -> None:
    emulated.allocate(PAGE).close()
    gc.collect()
    before = dict(gpu.live)
    for _ in range(3):
        buffer = emulated.wrap(region.aperture(0, region.size))
        assert sum(gpu.live.values()) == sum(before.values()) + region.size
        buffer.close()
        gc.collect()
        assert gpu.live == before
    emulated.close()
    gc.collect()
    assert not gpu.live


def test_pages_outlive_their_buffers(emulated: Device) -> None:
    """Metal's buffer is released before the pages."""
    region = Region(PAGE, PAGE)
    pages = weakref.ref(region.pages)
    buffer = emulated.wrap(region.aperture(0, PAGE))
    metal = weakref.ref(buffer.allocation.bind(0, PAGE)[0])
    weakref.finalize(metal(), lambda: order.append(("buffer", pages() is not None)))
    weakref.finalize(pages(), lambda: order.append(("pages", metal() is not None)))
    order: list[tuple[str, bool]] = []
    region.close()
    del region
    buffer.close()
    gc.collect()
    assert order == [("buffer", True), ("pages", False)]


@pytest.mark.parametrize("memory", ["wrapped", "allocated"])
def test_long_ranges_are_cut(open_on: Callable[[Gpu], Device], region: Region, memory: str) -> None:
    """A binding that crosses a boundary between buffers gets another buffer over the same bytes."""
    gpu = Gpu(max_buffer_length=10 * PAGE + 1)
    device = open_on(gpu)
    assert device.info.max_binding_bytes == 9 * PAGE
    nbytes = 33 * PAGE
    before = sum(gpu.live.values())
    buffer = device.wrap(region.aperture(PAGE, nbytes)) if memory == "wrapped" else device.allocate(nbytes)
    assert (buffer.nbytes, buffer.view().size) == (nbytes, nbytes)
    assert sum(gpu.live.values()) == before + nbytes  # no page is wrapped twice without need
    parts = {id(buffer.allocation.bind(offset, 16)[0]) for offset in range(0, nbytes, PAGE)}
    assert len(parts) == 4

    values = np.arange(nbytes // 4, dtype=np.float32)
    buffer.view().view(np.float32)[:] = values
    longest = device.info.max_binding_bytes // 4
    for start in (0, longest - 4, longest - 4, 2 * longest + 4, len(values) - longest):
        double(device, Binding(buffer, 4 * start, 4 * longest))
        values[start : start + longest] *= 2
        assert np.array_equal(buffer.view().view(np.float32), values)
    buffer.close()
    gc.collect()
    assert sum(gpu.live.values()) == before


def test_one_page_past_the_longest(open_on: Callable[[Gpu], Device]) -> None:
    device = open_on(Gpu(max_buffer_length=4 * PAGE))
    for pages in range(1, 10):
        buffer = device.allocate(pages * PAGE)
        last = Binding(buffer, pages * PAGE - 16, 16)
        buffer.view()[:] = 0
        buffer.view().view(np.float32)[-4:] = 3
        double(device, last)
        assert buffer.view().view(np.float32)[-5:].tolist() == [0, 6, 6, 6, 6]


def double(device: Device, where: Binding) -> None:
    ran = recorded(device, (where, where, where))
    device.submit([ran]).wait()
    ran.close()


def test_both_kinds_are_seen_by_the_host(emulated: Device) -> None:
    for kind in MemoryKind:
        buffer = emulated.allocate(100, kind)
        assert buffer.view().size == 100
        assert buffer.device_address not in (None, buffer.address)


def test_buffers_that_nobody_holds_are_freed(metal: Device) -> None:
    """By Metal's count of allocated bytes; also on a Mac: PyObjC's core before version 13 leaked every buffer there."""
    handle = metal.backend.queue.residency.physical.handle
    nbytes = 64 * MIB
    gc.collect()
    before = handle.currentAllocatedSize()
    for _ in range(4):
        region = Region(nbytes, nbytes)
        wrapped, own = metal.wrap(region.aperture(0, nbytes)), metal.allocate(nbytes)
        double(metal, Binding(own, 0, 64))
        assert not EMULATED or handle.currentAllocatedSize() >= before + 2 * nbytes
        wrapped.close()
        own.close()
        region.close()
        del wrapped, own
        gc.collect()
        nothing = metal.record()  # buffers of a residency set stay wired until the GPU runs again
        nothing.finish()
        metal.submit([nothing]).wait()
        assert handle.currentAllocatedSize() < before + nbytes
