"""The reasons why pages are refused before a driver imports them."""

from __future__ import annotations

from pathlib import Path

import pytest

from wasmetal.device.hostpages import find_problem
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mappings on this system")


def test_memory_is_no_problem(region: Region) -> None:
    assert find_problem(region.address, region.size) is None


def test_pages_not_yet_open(region: Region) -> None:
    problem = find_problem(region.address, region.size + page_size())
    assert problem == f"the page at {region.address + region.size:#x} is not accessible"
    region.grow(region.size + page_size())
    assert find_problem(region.address, region.size) is None


def test_read_only_pages(read_only: int) -> None:
    assert find_problem(read_only, page_size()) == f"the page at {read_only:#x} is read-only"


def test_no_pages() -> None:
    assert find_problem(0, page_size()) == "the page at 0x0 is not mapped"
