"""Residency: buffers are spread over sets, and stay resident while nothing is submitted."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from tests.device.harness import recorded, span
from tests.metal.standin import Gpu
from wasmetal.device import Buffer, Device
from wasmetal.memory.pages import page_size

PART = 64 << 20
"""A twentieth of the emulated working set."""


@pytest.fixture
def gpu() -> Gpu:
    return Gpu(working_set=20 * PART)


class Clock:
    """A clock that tests set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(emulated: Device) -> Clock:
    """The heartbeat's clock. The heartbeat's thread is not started: the tests call ``step``."""
    heartbeat = emulated.backend.queue.residency.heartbeat
    heartbeat._clock = told = Clock()
    heartbeat._start = lambda: None
    return told


def sets(gpu: Gpu) -> list[int]:
    return [each.nbytes for each in gpu.sets if each.nbytes]


def submit(device: Device, buffer: Buffer) -> None:
    whole = span(buffer, 0, 4)
    device.submit([recorded(device, (whole, whole, whole))]).wait()
    gc.collect()


def test_a_long_buffer_is_in_several_sets(gpu: Gpu, emulated: Device) -> None:
    buffer = emulated.allocate(3 * PART + page_size())
    assert sets(gpu) == [PART, PART, PART, page_size()]
    small = [emulated.allocate(page_size()) for _ in range(3)]
    assert sets(gpu) == [PART, PART, PART, 4 * page_size()]
    buffer.close()
    gc.collect()
    assert sets(gpu) == [3 * page_size()]
    del small


def test_a_queue_has_no_more_than_32_sets(open_on: Callable[[Gpu], Device]) -> None:
    gpu = Gpu(working_set=20 * PART)
    device = open_on(gpu)
    held = [device.allocate(PART) for _ in range(19)]
    half = PART // 2 + page_size()
    held += [device.allocate(half) for _ in range(14)]
    assert len(sets(gpu)) == 32
    assert sum(sets(gpu)) == sum(gpu.live.values())
    assert max(sets(gpu)) == 2 * half  # the last buffer is in the least full set
    del held


def test_residency_is_asked_for_at_a_submission(gpu: Gpu, emulated: Device, clock: Clock) -> None:
    buffer = emulated.allocate(page_size())
    whole = span(buffer, 0, 4)
    double = recorded(emulated, (whole, whole, whole))
    gpu.wired.clear()
    emulated.submit([double]).wait()
    assert len(gpu.wired) == 1
    emulated.submit([double]).wait()
    assert len(gpu.wired) == 1  # residency was requested a moment ago
    clock.now += 0.6
    emulated.submit([double]).wait()
    assert len(gpu.wired) == 2
    more = emulated.allocate(page_size())
    emulated.submit([double]).wait()
    assert len(gpu.wired) == 3  # a new buffer
    del more


def test_an_idle_device_keeps_its_buffers_for_three_minutes(gpu: Gpu, emulated: Device, clock: Clock) -> None:
    buffer = emulated.allocate(page_size())
    submit(emulated, buffer)
    heartbeat = emulated.backend.queue.residency.heartbeat
    gpu.wired.clear()
    beats = 0
    while heartbeat.step():
        beats += 1
        clock.now += 0.5
    assert beats == len(gpu.wired) == 360
    submit(emulated, buffer)
    assert heartbeat.step()


def test_a_device_without_buffers_ends_residency(gpu: Gpu, emulated: Device, clock: Clock) -> None:
    buffer = emulated.allocate(page_size())
    submit(emulated, buffer)
    heartbeat = emulated.backend.queue.residency.heartbeat
    assert heartbeat.step()
    buffer.close()
    del buffer
    gc.collect()
    gpu.wired.clear()
    assert not heartbeat.step()
    assert not gpu.wired


def test_closing_ends_residency(gpu: Gpu, emulated: Device) -> None:
    buffer = emulated.allocate(page_size())
    submit(emulated, buffer)
    assert gpu.wired
    residency = emulated.backend.queue.residency
    residency.close()
    assert not gpu.wired
    assert not residency.heartbeat.step()  # as its thread may, if a beat was due
    assert not gpu.wired
    emulated.close()
