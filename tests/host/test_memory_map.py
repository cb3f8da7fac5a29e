"""The picture of a guest's memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.host.probe import PAGE, Probe
from wasmetal.device import Device
from wasmetal.host.errno import Errno
from wasmetal.host.memory_map import SHARED, UNTOUCHED, USED, MemoryMap
from wasmetal.memory import page_size


def test_apertures_come_and_go(device: Device) -> None:
    with Probe(device, pages=8) as probe:
        assert probe.guest.memory_map() is None  # nothing was asked of the host yet
        buffer = probe.share()  # of four of WebAssembly's pages, from the second on
        probe.put(6 * PAGE, np.ones(1, np.float32))
        found = probe.guest.memory_map()
        assert found
        assert found.nbytes == 8 * PAGE
        assert found.apertures == ((PAGE, 4 * PAGE),)
        shared = np.flatnonzero(found.pages == SHARED) * page_size()
        assert (shared[0], shared[-1] + page_size()) == (PAGE, 5 * PAGE)
        assert found.pages[6 * PAGE // page_size()] == USED
        assert found.pages[-1] == UNTOUCHED
        assert probe.buffer_destroy(buffer) == Errno.SUCCESS
        found = probe.guest.memory_map()
        assert found
        assert found.apertures == ()
        assert SHARED not in found.pages
    assert probe.guest.memory_map() is None


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_cells(most: int) -> None:
    pages = np.zeros(10, np.uint8)
    pages[[2, 9]] = USED, SHARED
    cells = MemoryMap(10 * page_size(), (), pages).cells(most)
    each = -(-10 // len(cells))
    assert len(cells) <= most
    assert cells == [int(pages[begin : begin + each].max()) for begin in range(0, 10, each)]
