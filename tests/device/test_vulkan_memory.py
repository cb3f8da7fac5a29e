"""The memory type and the lifetime of buffers."""

from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest

from tests.device.harness import recorded, span
from wasmetal.device import Device, MemoryKind, abandoned, copying, open_device
from wasmetal.errors import DeviceError

pytestmark = pytest.mark.vulkan

LOCAL, VISIBLE, COHERENT, CACHED = 1, 2, 4, 8

DISCRETE_GPU = [0, LOCAL, VISIBLE | COHERENT, VISIBLE | COHERENT | CACHED, LOCAL | VISIBLE | COHERENT]
"""The property flags of an NVIDIA card's memory types, the last of which is device memory over the bus."""

SOFTWARE = [LOCAL | VISIBLE | COHERENT | CACHED]


@pytest.mark.parametrize(
    ("types", "allowed", "needed", "preferred", "avoided", "expected"),
    [
        (DISCRETE_GPU, 0b11111, VISIBLE | COHERENT, CACHED, LOCAL, 3),  # shared
        (DISCRETE_GPU, 0b11111, LOCAL, 0, VISIBLE | COHERENT, 1),  # device
        (DISCRETE_GPU, 0b10111, VISIBLE | COHERENT, CACHED, LOCAL, 2),
        (DISCRETE_GPU, 0b10001, LOCAL, 0, VISIBLE | COHERENT, 4),
        (DISCRETE_GPU, 0b00011, VISIBLE | COHERENT, CACHED, LOCAL, None),
        (SOFTWARE, 0b1, VISIBLE | COHERENT, LOCAL | CACHED, 0, 0),
        (SOFTWARE, 0b0, 0, 0, 0, None),
    ],
)
def test_memory_type(
    vulkan: Device, types: list[int], allowed: int, needed: int, preferred: int, avoided: int, expected: int | None
) -> None:
    from wasmetal.device.vulkan.memory import choose_type

    assert choose_type(types, allowed, needed, preferred, avoided) == expected


def test_the_host_does_not_see_a_discrete_gpus_memory(own_discrete: Device) -> None:
    buffer = own_discrete.allocate(64, MemoryKind.DEVICE)
    assert buffer.address is None
    with pytest.raises(DeviceError, match=r"use Device\.read and Device\.write"):
        buffer.view()
    assert own_discrete.allocate(64, MemoryKind.SHARED).address is not None


def test_long_copies_go_in_chunks(own_discrete: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK", 1000)
    buffer = own_discrete.allocate(12_345, MemoryKind.DEVICE)
    data = np.random.default_rng(0).integers(0, 256, 12_000, dtype=np.uint8)
    own_discrete.load(buffer, 345, data)
    out = np.empty_like(data)
    own_discrete.read(buffer, 345, out)
    assert np.array_equal(out, data)
    assert own_discrete.counters.bytes_loaded == own_discrete.counters.bytes_copied == 12_000


def test_a_copy_waits_for_what_was_submitted_before_it(own_discrete: Device) -> None:
    count = 1 << 16
    buffer = own_discrete.allocate(4 * count)
    own_discrete.write(buffer, 0, np.ones(count, np.float32).view(np.uint8))
    whole = span(buffer, 0, count)
    submission = own_discrete.submit([recorded(own_discrete, *[(whole, whole, whole)] * 30)])
    out = np.empty(4 * count, np.uint8)
    own_discrete.read(buffer, 0, out)
    assert np.all(out.view(np.float32) == 2**30)
    submission.wait()


def test_a_view_outlives_its_buffer_and_device(vulkan: Device) -> None:
    device = open_device("vulkan")
    logical = weakref.ref(device.backend.logical)
    view = device.allocate(1 << 20, MemoryKind.SHARED).view()
    part = view[1000:2000]
    device.close()
    del view
    gc.collect()
    part[:] = 7
    assert part.sum() == 7000
    assert logical() is not None
    del part
    gc.collect()
    assert logical() is None


def test_closing_frees_what_is_still_open(vulkan: Device) -> None:
    device = open_device("vulkan")
    logical = weakref.ref(device.backend.logical)
    buffers = [device.allocate(1 << 20, kind) for kind in MemoryKind]
    allocations = [weakref.ref(buffer.allocation) for buffer in buffers]
    lists = [recorded(device, (span(buffers[0], 0, 4), span(buffers[1], 0, 4), span(buffers[0], 4, 4)))]
    submission = device.submit(lists)
    device.close()
    assert [allocation() for allocation in allocations] == [None, None]
    submission.wait(0)
    assert submission.seconds > 0  # readable after the device is closed
    del submission, lists
    assert logical() is None


def test_all_dropped_while_at_work(vulkan: Device) -> None:
    """Everything is dropped without being closed: the work ends before the memory that it uses is freed."""
    device = open_device("vulkan")
    logical = weakref.ref(device.backend.logical)
    count = 1 << 16
    whole = span(device.allocate(4 * count), 0, count)
    device.submit([recorded(device, *[(whole, whole, whole)] * 400)])
    del device, whole
    gc.collect()
    end = time.monotonic() + 30
    while logical() is not None and time.monotonic() < end:
        time.sleep(0.01)
        abandoned.release_ended()
    assert logical() is None
