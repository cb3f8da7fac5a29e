"""Host pages that a Vulkan device must refuse, each with the reason, and leaks of wraps."""

from __future__ import annotations

import gc
import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from tests.device.harness import Pages
from wasmetal.device import Device
from wasmetal.errors import WrapRefusedError
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

pytestmark = pytest.mark.vulkan


def refused(device: Device, pages: Pages, reason: str) -> None:
    """The wrap is refused for this reason, in one line, and nothing is counted."""
    before = device.counters.bytes_shared
    with pytest.raises(WrapRefusedError, match=re.escape(reason)) as caught:
        device.wrap(pages)
    assert "\n" not in str(caught.value)
    assert str(pages.nbytes) in str(caught.value)
    assert device.counters.bytes_shared == before


@pytest.mark.parametrize(("shift", "nbytes"), [(64, 4096), (0, 4096 + 64), (0, 1), (0, 0), (0, -4096), (2048, 4096)])
def test_whole_pages_only(own_vulkan: Device, region: Region, shift: int, nbytes: int) -> None:
    reason = f"address and length must be multiples of {own_vulkan.info.page_alignment}"
    refused(own_vulkan, Pages(region.address + shift, nbytes), reason)


def test_read_only_pages(own_vulkan: Device, read_only: int) -> None:
    refused(own_vulkan, Pages(read_only, mmap.PAGESIZE), "is read-only")


def test_pages_not_yet_open(own_vulkan: Device, region: Region) -> None:
    refused(own_vulkan, Pages(region.address, region.capacity), "is not accessible")
    refused(own_vulkan, Pages(region.address + region.size, page_size()), "is not accessible")


def test_no_pages(own_vulkan: Device) -> None:
    refused(own_vulkan, Pages(page_size(), page_size()), "is not mapped")


def test_more_than_the_driver_takes_at_once(own_vulkan: Device, region: Region) -> None:
    own_vulkan.backend.logical.physical.max_allocation_bytes = limit = 3 * page_size()
    refused(own_vulkan, region.aperture(0, limit + page_size()), f"at most {limit} at once")


@pytest.mark.parametrize(
    ("function", "result"),
    [
        ("vkGetMemoryHostPointerPropertiesEXT", -1000072003),
        ("vkAllocateMemory", -1000072003),
        ("vkAllocateMemory", -2),  # the result of a driver that cannot pin the pages
        ("vkAllocateMemory", -1),
    ],
)
def test_the_drivers_own_refusal(own_vulkan: Device, region: Region, faults, function: str, result: int) -> None:
    faults(own_vulkan, function, result)
    refused(own_vulkan, region.aperture(0, page_size()), function)


def test_no_memory_type(own_vulkan: Device, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_vulkan.backend.logical, "importable_types", lambda address: 0)
    refused(own_vulkan, region.aperture(0, page_size()), "the driver has no memory type for these host pages")


def test_a_refusal_leaves_the_device_usable(own_vulkan: Device, region: Region) -> None:
    refused(own_vulkan, Pages(region.address + 1, page_size()), "multiples")
    own_vulkan.wrap(region.aperture(0, page_size())).view()[:] = 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mappings on this system")
def test_wraps_leave_nothing_behind(own_vulkan: Device) -> None:
    """Regions that were wrapped, used and dropped in either order are unmapped again."""

    def mappings() -> int:
        gc.collect()
        return len(Path("/proc/self/maps").read_text().splitlines())

    def cycle(i: int) -> None:
        region = Region(1 << 20, 1 << 16, guard=1 << 16)
        buffer = own_vulkan.wrap(region.aperture(0, region.size))
        buffer.view()[:] = np.uint8(i % 251)
        (buffer if i % 2 else region).close()

    cycle(0)
    before = mappings()
    for i in range(300):
        cycle(i)
    assert mappings() <= before + 2  # Python's allocator may have grown
