"""A guest finds nothing that another one, or it itself, has left behind: 0 bytes of all that it can read.

``WASMETAL_ZEROING_BYTES`` says how much device memory is filled and read, such as 8GiB on a GPU that has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.device.conftest import OPENERS
from tests.metal.devices import EMULATED
from tests.security import zeroing
from tests.security.zeroing import ENDS, PATTERN
from wasmetal.device import Device
from wasmetal.device.opened import OpenDevice
from wasmetal.models.lm.kv_cache import KVCache

NBYTES = zeroing.byte_count(os.environ.get("WASMETAL_ZEROING_BYTES", "4MiB"))


NAMES = [name for name in OPENERS if name != "metal" or not EMULATED]


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.vulkan] * name.startswith("vulkan")) for name in NAMES])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Each device, opened anew; also a Vulkan device whose memory the host does not see, so that copies are staged."""
    if request.param != "cpu":
        request.getfixturevalue(request.param.split()[0])  # skips, or fails, if there is none
    with OPENERS[request.param]() as opened:
        yield opened


def test_nothing_is_left(device: Device) -> None:
    check(device, "closed while the device works")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_however_a_guest_ends(device: Device, end: str) -> None:
    check(device, end)


def check(device: Device, end: str) -> None:
    found = zeroing.run(device, NBYTES, end)
    assert found.wrong == {}
    assert min(found.read.values()) > 0
    assert found.read["new buffers"] == NBYTES


def dirty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = OpenDevice.allocate

    def dirty(self: OpenDevice, nbytes: int, *kind: object) -> object:
        buffer = allocate(self, nbytes, *kind)
        self.write(buffer, nbytes - 1, np.full(1, PATTERN & 0xFF, np.uint8))
        return buffer

    monkeypatch.setattr(OpenDevice, "allocate", dirty)


def dirty_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved session has the first page of the pool for its last one."""
    read = KVCache.read
    monkeypatch.setattr(KVCache, "read", lambda self, pages, length: read(self, [*pages[:-1], 0], length))


@pytest.mark.parametrize(
    ("fault", "where"), [(dirty_memory, "new buffers"), (dirty_pages, "saved sessions")], ids=["memory", "pages"]
)
def test_what_is_left_is_found(
    cpu: Device, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None], where: str
) -> None:
    fill = zeroing.fill

    def fill_and_break(*arguments: object) -> None:
        fill(*arguments)
        fault(monkeypatch)

    monkeypatch.setattr(zeroing, "fill", fill_and_break)
    monkeypatch.setattr(zeroing, "kernel_probes", lambda: iter(()))
    assert where in zeroing.run(cpu, 1 << 20, "closed").wrong
