"""What every device must do, whatever it is."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
from harness import add, floats, recorded, span
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wasmetal.device import Binding, Device, MemoryKind
from wasmetal.errors import DeviceError, OutOfDeviceMemoryError
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

per_device = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bytes_of(device: Device, buffer, offset: int, nbytes: int) -> np.ndarray:
    out = np.full(nbytes, 0xAA, np.uint8)
    device.read(buffer, offset, out)
    return out


def test_info(device: Device) -> None:
    info = device.info
    assert info.spec == f"{info.backend}:{info.index}"
    assert info.name
    assert info.driver
    assert info.memory_bytes > 0
    assert info.page_alignment % page_size() == 0
    assert info.offset_alignment & (info.offset_alignment - 1) == 0
    assert info.max_binding_bytes >= 1 << 27  # what Vulkan guarantees
    assert info.features


@pytest.mark.parametrize("kind", MemoryKind)
@pytest.mark.parametrize("nbytes", [1, 4, 17, 4096, (1 << 20) + 3])
def test_allocations_are_zero(device: Device, kind: MemoryKind, nbytes: int) -> None:
    for _ in range(3):  # memory that comes back is zeroed again
        buffer = device.allocate(nbytes, kind)
        assert (buffer.nbytes, buffer.kind) == (nbytes, kind)
        assert not bytes_of(device, buffer, 0, nbytes).any()
        device.write(buffer, 0, np.full(nbytes, 0xFF, np.uint8))
        buffer.close()


@pytest.mark.parametrize("nbytes", [0, -1])
def test_allocations_have_a_length(device: Device, nbytes: int) -> None:
    with pytest.raises((DeviceError, OutOfDeviceMemoryError)):
        device.allocate(nbytes)


def test_more_than_there_is(device: Device) -> None:
    with pytest.raises(OutOfDeviceMemoryError):
        device.allocate(1 << 60)


@pytest.mark.parametrize("kind", MemoryKind)
@per_device
@given(data=st.data())
def test_write_and_read(device: Device, kind: MemoryKind, data: st.DataObject) -> None:
    size = 5000
    buffer = device.allocate(size, kind)
    expected = np.zeros(size, np.uint8)
    before = device.counters.bytes_copied
    copied = 0
    for _ in range(3):
        offset = data.draw(st.integers(0, size - 1))
        content = np.frombuffer(data.draw(st.binary(min_size=1, max_size=size - offset)), np.uint8)
        device.write(buffer, offset, content)
        expected[offset : offset + content.size] = content
        copied += content.size
    start = data.draw(st.integers(0, size - 1))
    nbytes = data.draw(st.integers(1, size - start))
    assert np.array_equal(bytes_of(device, buffer, start, nbytes), expected[start : start + nbytes])
    assert device.counters.bytes_copied - before == copied + nbytes
    assert device.counters.bytes_loaded == 0
    buffer.close()


def test_weights_are_counted_apart(device: Device) -> None:
    buffer = device.allocate(100)
    device.load(buffer, 10, np.arange(90, dtype=np.uint8))
    assert (device.counters.bytes_loaded, device.counters.bytes_copied) == (90, 0)
    assert np.array_equal(bytes_of(device, buffer, 0, 100)[10:], np.arange(90))


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 4), (97, 4), (0, 101), (1 << 40, 1)])
def test_copies_stay_inside(device: Device, offset: int, nbytes: int) -> None:
    buffer = device.allocate(100)
    data = np.zeros(nbytes, np.uint8)
    for copy in (device.write, device.read, device.load):
        with pytest.raises(DeviceError):
            copy(buffer, offset, data)
    assert (device.counters.bytes_copied, device.counters.bytes_loaded) == (0, 0)


def test_shared_memory_has_a_view(device: Device) -> None:
    buffer = device.allocate(64, MemoryKind.SHARED)
    assert buffer.view().ctypes.data == buffer.address
    floats(buffer)[:] = np.arange(16)
    ran = recorded(device, (span(buffer, 0, 8), span(buffer, 8, 8), span(buffer, 0, 8)))
    device.submit([ran]).wait()
    assert np.array_equal(floats(buffer)[:8], np.arange(8) + np.arange(8, 16))
    assert device.counters.bytes_copied == 0


def test_wrapped_pages_are_the_same_pages(device: Device, region: Region) -> None:
    aperture = region.aperture(page_size(), 2 * page_size())
    buffer = device.wrap(aperture)
    assert buffer.address == aperture.address == region.address + page_size()
    assert (buffer.nbytes, buffer.kind) == (2 * page_size(), MemoryKind.SHARED)
    assert buffer.view().ctypes.data == aperture.address
    memory = region.view()[page_size() : 3 * page_size()].view(np.float32)
    memory[:32] = np.arange(32)  # the host writes, and the device sees it
    ran = recorded(device, (span(buffer, 0, 16), span(buffer, 16, 16), span(buffer, 32, 16)))
    device.submit([ran]).wait()
    assert np.array_equal(memory[32:48], np.arange(16) + np.arange(16, 32))  # and the other way round
    memory[:16] = 1000
    device.submit([ran]).wait()
    assert np.array_equal(memory[32:48], 1000 + np.arange(16, 32))
    assert (device.counters.bytes_copied, device.counters.bytes_shared) == (0, 2 * page_size())


def test_growth_leaves_wrapped_pages_alone(device: Device, region: Region) -> None:
    first = device.wrap(region.aperture(0, region.size))
    floats(first)[:8] = 7
    old_size = region.size
    while region.size < region.capacity:
        region.grow(region.size + page_size())
    second = device.wrap(region.aperture(old_size, region.size - old_size))
    floats(second)[:8] = 5
    ran = recorded(
        device,
        (span(first, 0, 8), span(second, 0, 8), span(second, 8, 8)),
        (span(second, 8, 8), span(first, 0, 8), span(first, 8, 8)),
    )
    device.submit([ran]).wait()
    memory = region.view().view(np.float32)
    assert np.all(memory[8:16] == 19)
    assert np.all(memory[old_size // 4 + 8 : old_size // 4 + 16] == 12)


def test_overlapping_wraps_are_one_memory(device: Device, region: Region) -> None:
    whole = device.wrap(region.aperture(0, 2 * page_size()))
    half = device.wrap(region.aperture(page_size(), page_size()))
    at = page_size() // 4  # where the half begins in the whole
    floats(whole)[:8] = 1
    sums = [(span(whole, at, 8), span(whole, 0, 8), span(half, 0, 8)) for _ in range(20)]
    device.submit([recorded(device, *sums)]).wait()
    assert np.all(floats(half)[:8] == 20)


@pytest.mark.parametrize("kind", MemoryKind)
def test_each_dispatch_sees_those_before_it(device: Device, kind: MemoryKind) -> None:
    """Fibonacci numbers in three places: a dispatch reads what the last two wrote, and overwrites what they read."""
    count = 1 << 14
    buffer = device.allocate(3 * 4 * count, kind)
    device.write(buffer, 0, np.ones(2 * count, np.float32).view(np.uint8))
    places = [span(buffer, i * count, count) for i in range(3)]
    sums = [(places[i % 3], places[(i + 1) % 3], places[(i + 2) % 3]) for i in range(20)]
    device.submit([recorded(device, *sums)]).wait()
    got = bytes_of(device, buffer, 0, buffer.nbytes).view(np.float32).reshape(3, count)
    numbers = [1.0, 1.0]
    while len(numbers) < 22:
        numbers.append(numbers[-1] + numbers[-2])
    for i, number in enumerate(numbers[-3:], start=19):
        assert np.all(got[i % 3] == number)


@per_device
@given(program=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=30), lists=st.integers(1, 4))
def test_any_program_runs_in_order(device: Device, program: list[tuple[int, int, int]], lists: int) -> None:
    """Random sums between six places, cut into several lists, against NumPy one after another."""
    count = 64
    values = np.random.default_rng(0).integers(0, 4, (6, count)).astype(np.float32)
    buffer = device.allocate(values.nbytes, MemoryKind.DEVICE)
    device.write(buffer, 0, values.reshape(-1).view(np.uint8))
    places = [span(buffer, i * count, count) for i in range(6)]
    cuts = [program[i::lists] for i in range(lists)]
    device.submit([recorded(device, *((places[a], places[b], places[c]) for a, b, c in cut)) for cut in cuts]).wait()
    for a, b, c in itertools.chain(*cuts):
        values[c] = values[a] + values[b]
    assert np.array_equal(bytes_of(device, buffer, 0, values.nbytes).view(np.float32).reshape(6, count), values)
    buffer.close()


def test_a_list_is_recorded_once_and_replayed(device: Device) -> None:
    buffer = device.allocate(4 * 48, MemoryKind.SHARED)
    ran = recorded(device, (span(buffer, 0, 16), span(buffer, 16, 16), span(buffer, 32, 16)))
    for step in range(50):
        floats(buffer)[:16], floats(buffer)[16:32] = step, 2 * step
        device.submit([ran]).wait()
        assert np.all(floats(buffer)[32:] == 3 * step)
    assert (device.counters.submits, device.counters.dispatches) == (50, 50)


def test_lists_of_one_submission_run_in_order(device: Device) -> None:
    buffer = device.allocate(4 * 32, MemoryKind.SHARED)
    floats(buffer)[:] = 1
    double = [recorded(device, (span(buffer, 0, 16), span(buffer, 0, 16), span(buffer, 0, 16))) for _ in range(5)]
    device.submit(double).wait()
    assert np.all(floats(buffer)[:16] == 32)
    assert device.counters.submits == 1


def test_an_empty_list_runs(device: Device) -> None:
    assert device.submit([recorded(device)]).wait() >= 0


def test_time_on_the_device(device: Device) -> None:
    buffer = device.allocate(4 << 20)
    quarter = buffer.nbytes // 16
    ran = recorded(device, *[(span(buffer, 0, quarter), span(buffer, 0, quarter), span(buffer, quarter, quarter))] * 4)
    submission = device.submit([ran])
    seconds = submission.wait()
    assert 0 < seconds < 60
    assert submission.wait() == seconds
    assert device.counters.device_seconds == pytest.approx(seconds)
    seconds += device.submit([ran]).wait()
    assert device.counters.device_seconds == pytest.approx(seconds)


def test_recording_ends_once(device: Device) -> None:
    buffer = device.allocate(64)
    commands = device.record()
    add(commands, span(buffer, 0, 4), span(buffer, 4, 4), span(buffer, 8, 4))
    with pytest.raises(DeviceError):
        device.submit([commands])
    commands.finish()
    with pytest.raises(DeviceError):
        add(commands, span(buffer, 0, 4), span(buffer, 4, 4), span(buffer, 8, 4))


@per_device
@given(order=st.permutations(["region", "aperture", "buffer", "list", "device"]))
def test_closing_in_any_order(opener: Callable[[], Device], order: list[str]) -> None:
    device = opener()
    region = Region(1 << 16, 1 << 16)
    aperture = region.aperture(0, region.size)
    buffer = device.wrap(aperture)
    view = buffer.view()
    ran = recorded(device, (span(buffer, 0, 8), span(buffer, 8, 8), span(buffer, 16, 8)))
    device.submit([ran]).wait()
    things = {"region": region, "aperture": aperture, "buffer": buffer, "list": ran, "device": device}
    del device, region, aperture, buffer, ran
    for name in order:
        things[name].close()
        things[name].close()
        view[:] = 1  # a view that is still held is still memory
        things.pop(name)
        gc.collect(0)
    view[:] = 2


@pytest.mark.parametrize("kind", MemoryKind)
def test_a_list_keeps_closed_buffers(device: Device, kind: MemoryKind) -> None:
    """Closed before the list is finished, and used by another allocation's contents only if it was freed too early."""
    kept = device.allocate(4 * 64, MemoryKind.SHARED)
    floats(kept)[:] = 3
    gone = device.allocate(4 * 64, kind)
    device.write(gone, 0, np.full(64, 4, np.float32).view(np.uint8))
    commands = device.record()
    add(commands, span(kept, 0, 64), span(gone, 0, 64), span(kept, 0, 64))
    gone.close()
    gone.close()
    commands.finish()
    others = [device.allocate(4 * 64, kind) for _ in range(8)]
    device.submit([commands]).wait()
    assert np.all(floats(kept) == 7)
    assert not any(bytes_of(device, other, 0, 256).any() for other in others)
    with pytest.raises(DeviceError):
        gone.view()


def test_several_threads(device: Device) -> None:
    """Each thread with lists and buffers of its own, on one device."""
    threads, rounds, count = 4, 40, 256
    failures: list[object] = []

    def work(seed: int) -> None:
        try:
            buffer = device.allocate(4 * 3 * count, MemoryKind.SHARED)
            ran = recorded(device, (span(buffer, 0, count), span(buffer, count, count), span(buffer, 2 * count, count)))
            for step in range(rounds):
                floats(buffer)[: 2 * count] = seed * step
                device.submit([ran]).wait()
                if not np.all(floats(buffer)[2 * count :] == 2 * seed * step):
                    failures.append((seed, step))
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(1, threads + 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert device.counters.submits == threads * rounds


def test_a_binding_stays_inside_its_buffer(device: Device) -> None:
    buffer = device.allocate(64)
    good = span(buffer, 0, 4)
    for bad in (Binding(buffer, 0, 68), Binding(buffer, 64, 4), Binding(buffer, 1 << 40, 4)):
        with pytest.raises(DeviceError):
            add(device.record(), good, good, bad)
