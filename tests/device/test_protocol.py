"""The behaviour that all devices share, at every offset alignment."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable
from functools import cached_property

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.device.harness import Pages, Vectors, add, recorded, spent_time
from wasmetal.device import Binding, Device, MemoryKind
from wasmetal.errors import DeviceError, DeviceTimeoutError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.kernels.catalog import CATALOG
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region


def bytes_of(device: Device, buffer, offset: int, nbytes: int) -> np.ndarray:
    out = np.full(nbytes, 0xAA, np.uint8)
    device.read(buffer, offset, out)
    return out


def doubling(device: Device, vectors: Vectors, times: int = 1):
    """A list that doubles vector 0."""
    return recorded(device, *[(vectors[0], vectors[0], vectors[0])] * times)


def long_list(device: Device):
    """A list that keeps a real queue busy for a while: some hundred dependent additions."""
    emulated = device.info.backend == "metal"  # that begins only when it is waited for
    return doubling(device, Vectors(device, 1, 1 << 19), 4 if emulated else 400)


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


def test_more_than_there_is(device: Device) -> None:
    with pytest.raises(OutOfDeviceMemoryError):
        device.allocate(1 << 60)


@pytest.mark.parametrize("kind", MemoryKind)
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
        cut = data.draw(st.integers(0, content.size))
        device.write(buffer, offset, content[:cut], content[cut:])
        expected[offset : offset + content.size] = content
        copied += content.size
    start = data.draw(st.integers(0, size - 1))
    nbytes = data.draw(st.integers(1, size - start))
    assert np.array_equal(bytes_of(device, buffer, start, nbytes), expected[start : start + nbytes])
    assert device.counters.bytes_copied - before == copied + nbytes
    assert device.counters.bytes_loaded == 0
    buffer.close()


@pytest.mark.parametrize("kind", MemoryKind)
@given(data=st.data())
def test_rows_of_arrays_go_to_several_buffers(device: Device, kind: MemoryKind, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    rows, offset = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 70))
    wide = [rng.integers(1, 256, (rows, width), np.uint8) for width in data.draw(st.lists(st.integers(1, 600)))]
    arrays = [each[:, data.draw(st.integers(0, each.shape[1] - 1)) :] for each in wide]
    total = sum(each.shape[1] for each in arrays)
    before = device.counters.bytes_copied
    buffers = [device.allocate(offset + total + 9, kind) for _ in range(rows)]
    device.write_rows(buffers, offset, *arrays)
    assert device.counters.bytes_copied - before == rows * total
    for row, buffer in enumerate(buffers):
        expected = b"".join([bytes(offset), *(each[row].tobytes() for each in arrays), bytes(9)])
        assert bytes_of(device, buffer, 0, buffer.nbytes).tobytes() == expected
    before = device.counters.bytes_copied
    out = [np.zeros((rows, each.shape[1] + 20), np.uint8) for each in arrays]
    device.read_rows(buffers, offset, *(each[:, 7:-13] for each in out))
    assert device.counters.bytes_copied - before == rows * total
    for each, expected in zip(out, arrays, strict=True):
        assert np.array_equal(each[:, 7:-13], expected)
        assert not each[:, :7].any()
        assert not each[:, -13:].any()
    for buffer in buffers:
        buffer.close()


def test_rows_must_fit(device: Device) -> None:
    buffers = [device.allocate(100), device.allocate(80)]
    device.write_rows(buffers, 20, np.zeros((2, 30), np.uint8), np.zeros((2, 30), np.uint8))
    copied = device.counters.bytes_copied
    for offset, rows in ((-1, (2, 4)), (77, (2, 4)), (1 << 40, (2, 1)), (0, (2, 81)), (0, (1, 4)), (0, (4,))):
        with pytest.raises(DeviceError):
            device.write_rows(buffers, offset, np.zeros(rows, np.uint8))
        with pytest.raises(DeviceError):
            device.read_rows(buffers, offset, np.zeros(rows, np.uint8))
    with pytest.raises(DeviceError, match="float32"):
        device.write_rows(buffers, 0, np.zeros((2, 4), np.float32))
    assert device.counters.bytes_copied == copied


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
    vectors = Vectors(device, 2, 8)
    assert vectors.buffer.view().ctypes.data == vectors.buffer.address
    vectors.view(0)[:], vectors.view(1)[:] = np.arange(8), np.arange(8, 16)
    device.submit([recorded(device, (vectors[0], vectors[1], vectors[0]))]).wait()
    assert np.array_equal(vectors.view(0), np.arange(8) + np.arange(8, 16))
    assert device.counters.bytes_copied == 0


def test_wrapped_pages_are_the_same_pages(device: Device, region: Region) -> None:
    aperture = region.aperture(page_size(), 2 * page_size())
    buffer = device.wrap(aperture)
    assert buffer.address == aperture.address == region.address + page_size()
    assert (buffer.nbytes, buffer.kind) == (2 * page_size(), MemoryKind.SHARED)
    assert buffer.view().ctypes.data == aperture.address
    memory = region.view()[page_size() : 3 * page_size()].view(np.float32)
    count = 64
    vectors = Vectors(device, 3, count, buffer=buffer)
    memory[: 2 * count] = np.arange(2 * count)  # the host writes, and the device sees it
    ran = recorded(device, (vectors[0], vectors[1], vectors[2]))
    device.submit([ran]).wait()
    result = memory[2 * count : 3 * count]
    assert np.array_equal(result, np.arange(count) + np.arange(count, 2 * count))  # and the other way round
    memory[:count] = 1000
    device.submit([ran]).wait()
    assert np.array_equal(result, 1000 + np.arange(count, 2 * count))
    assert (device.counters.bytes_copied, device.counters.bytes_shared) == (0, 2 * page_size())


def test_growth_leaves_wrapped_pages_alone(device: Device, region: Region) -> None:
    first = Vectors(device, 2, 8, buffer=device.wrap(region.aperture(0, region.size)))
    first.view(0)[:] = 7
    old_size = region.size
    while region.size < region.capacity:
        region.grow(region.size + page_size())
    second = Vectors(device, 2, 8, buffer=device.wrap(region.aperture(old_size, region.size - old_size)))
    second.view(0)[:] = 5
    sums = (first[0], second[0], second[1]), (second[1], first[0], first[1])
    device.submit([recorded(device, *sums)]).wait()
    memory = region.view()
    for begin, vectors, value in ((0, first, 19), (old_size, second, 12)):
        at = begin + vectors[1].offset
        assert np.all(memory[at : at + 32].view(np.float32) == value)


def test_overlapping_wraps_are_one_memory(device: Device, region: Region) -> None:
    whole = device.wrap(region.aperture(0, 2 * page_size()))
    half = Vectors(device, 1, 8, buffer=device.wrap(region.aperture(page_size(), page_size())))
    ones = Vectors(device, 1, 8, buffer=whole)
    ones.view(0)[:] = 1
    sums = [(Binding(whole, page_size(), 32), ones[0], half[0]) for _ in range(20)]
    device.submit([recorded(device, *sums)]).wait()
    assert np.all(half.view(0) == 20)


@pytest.mark.parametrize("kind", MemoryKind)
def test_each_dispatch_sees_those_before_it(device: Device, kind: MemoryKind) -> None:
    """Fibonacci numbers in three places: a dispatch reads what the last two wrote, and overwrites what they read."""
    vectors = Vectors(device, 3, 1 << 14, kind)
    vectors.write(0, 1)
    vectors.write(1, 1)
    sums = [(vectors[i % 3], vectors[(i + 1) % 3], vectors[(i + 2) % 3]) for i in range(20)]
    device.submit([recorded(device, *sums)]).wait()
    numbers = [1.0, 1.0]
    while len(numbers) < 22:
        numbers.append(numbers[-1] + numbers[-2])
    for i, number in enumerate(numbers[-3:], start=19):
        assert np.all(vectors.read(i % 3) == number)


@given(program=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=30), lists=st.integers(1, 4))
def test_any_program_runs_in_order(device: Device, program: list[tuple[int, int, int]], lists: int) -> None:
    """Random sums between six places, cut into several lists, against NumPy one after another."""
    count = 64
    values = np.random.default_rng(0).integers(0, 4, (6, count)).astype(np.float32)
    vectors = Vectors(device, 6, count, MemoryKind.DEVICE)
    for i, value in enumerate(values):
        vectors.write(i, value)
    cuts = [program[i::lists] for i in range(lists)]
    ran = [recorded(device, *((vectors[a], vectors[b], vectors[c]) for a, b, c in cut)) for cut in cuts]
    device.submit(ran).wait()
    for a, b, c in itertools.chain(*cuts):
        values[c] = values[a] + values[b]
    assert np.array_equal([vectors.read(i) for i in range(6)], values)
    vectors.buffer.close()


def test_a_list_is_recorded_once_and_replayed(device: Device) -> None:
    vectors = Vectors(device, 3, 16)
    ran = recorded(device, (vectors[0], vectors[1], vectors[2]))
    for step in range(50):
        vectors.view(0)[:], vectors.view(1)[:] = step, 2 * step
        device.submit([ran]).wait()
        assert np.all(vectors.view(2) == 3 * step)
    assert (device.counters.submits, device.counters.dispatches) == (50, 50)


def test_lists_of_one_submission_run_in_order(device: Device) -> None:
    vectors = Vectors(device, 1, 16)
    vectors.view(0)[:] = 1
    device.submit([doubling(device, vectors) for _ in range(5)]).wait()
    assert np.all(vectors.view(0) == 32)
    assert device.counters.submits == 1


def test_a_list_runs_as_often_as_it_is_named(device: Device) -> None:
    vectors = Vectors(device, 2, 1 << 16)
    vectors.view(0)[:], vectors.view(1)[:] = 1, 1
    doubles = doubling(device, vectors)
    adds = recorded(device, (vectors[0], vectors[1], vectors[0]))
    for times in (1, 2):  # also when it is replayed
        submission = device.submit([doubles, doubles, adds, doubles, adds, adds])
        submission.wait()
        assert np.all(vectors.view(0) == [12, 100][times - 1])
        assert submission.dispatches == 6
    once = device.submit([doubles])
    once.wait()
    many = device.submit([doubles] * 40)
    many.wait()
    assert many.seconds > once.seconds or not spent_time(device, once.seconds)


def test_submissions_take_effect_in_order(device: Device) -> None:
    """Waiting for the last is enough."""
    vectors = Vectors(device, 1, 16)
    vectors.view(0)[:] = 1
    submissions = [device.submit([doubling(device, vectors)]) for _ in range(5)]
    submissions[-1].wait()
    assert np.all(vectors.view(0) == 32)


def test_an_empty_list_runs(device: Device) -> None:
    submission = device.submit([recorded(device)])
    submission.wait()
    assert not submission.pending
    assert submission.seconds >= 0
    assert submission.dispatches == 0


def test_what_a_submission_costs(device: Device) -> None:
    ran = [doubling(device, Vectors(device, 1, 1 << 18), times) for times in (4, 3)]
    submission = device.submit(ran)
    submission.wait()
    assert spent_time(device, submission.seconds)
    assert submission.seconds < 60
    assert submission.dispatches == 7
    seconds = submission.seconds
    submission.wait()
    assert submission.seconds == seconds
    another = device.submit(ran[1:])
    another.wait()
    assert another.dispatches == 3
    assert submission.seconds == seconds
    assert device.counters.device_seconds == pytest.approx(seconds + another.seconds)
    assert device.counters.dispatches == 10


def test_a_submission_is_pending_until_it_has_ended(device: Device) -> None:
    submission = device.submit([long_list(device)])
    assert submission.pending
    assert submission.seconds == 0
    submission.wait()
    assert not submission.pending


def test_a_wait_that_is_too_short(device: Device) -> None:
    submission = device.submit([long_list(device)])
    if device.info.backend != "metal":
        with pytest.raises(DeviceTimeoutError):
            submission.wait(0.0001)
        assert submission.pending
    submission.wait()
    submission.wait(0)  # done is done


@pytest.mark.timeout(600)  # opens as many devices as there are examples
@given(order=st.permutations(["region", "aperture", "buffer", "list", "device"]))
def test_closing_in_any_order(opener: Callable[[], Device], order: list[str]) -> None:
    device = opener()
    region = Region(1 << 16, 1 << 16)
    aperture = region.aperture(0, region.size)
    buffer = device.wrap(aperture)
    view = buffer.view()
    ran = doubling(device, Vectors(device, 1, 8, buffer=buffer))
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
    kept, gone = Vectors(device, 1, 64), Vectors(device, 1, 64, kind)
    kept.view(0)[:] = 3
    gone.write(0, 4)
    commands = device.record()
    add(commands, kept[0], gone[0], kept[0])
    gone.buffer.close()
    gone.buffer.close()
    commands.finish()
    others = [device.allocate(4 * 64, kind) for _ in range(8)]
    device.submit([commands]).wait()
    assert np.all(kept.view(0) == 7)
    assert not any(bytes_of(device, other, 0, 256).any() for other in others)
    with pytest.raises(DeviceError):
        gone.buffer.view()


def test_closing_a_device_ends_its_work(opener: Callable[[], Device]) -> None:
    device = opener()
    vectors = Vectors(device, 1, 16)
    values = vectors.view(0)
    values[:] = 1
    submission = device.submit([doubling(device, vectors)])
    device.close()
    assert np.all(values == 2)
    submission.wait(0)
    assert spent_time(device, submission.seconds)


def test_several_threads(device: Device) -> None:
    """Threads with separate lists and buffers, on one device."""
    threads, rounds = 4, 40
    failures: list[object] = []

    def work(seed: int) -> None:
        try:
            vectors = Vectors(device, 3, 256)
            ran = recorded(device, (vectors[0], vectors[1], vectors[2]))
            for step in range(rounds):
                vectors.view(0)[:] = vectors.view(1)[:] = seed * step
                device.submit([ran]).wait()
                if not np.all(vectors.view(2) == 2 * seed * step):
                    failures.append((seed, step))
        except Exception as error:
            failures.append(error)

    run_all(work, range(1, threads + 1))
    assert not failures
    assert device.counters.submits == device.counters.dispatches == threads * rounds


def test_several_threads_wait_for_one_submission(device: Device) -> None:
    vectors = Vectors(device, 1, 1 << 12)
    vectors.view(0)[:] = 1
    submission = device.submit([doubling(device, vectors, 20)])
    seen: list[float] = []

    def wait(_: int) -> None:
        submission.wait()
        seen.append(float(vectors.view(0)[-1]))

    run_all(wait, range(4))
    assert seen == [2.0**20] * 4
    assert spent_time(device, submission.seconds)
    assert device.counters.device_seconds == submission.seconds  # counted once


def run_all(work: Callable[[int], None], arguments: range) -> None:
    workers = [threading.Thread(target=work, args=(argument,)) for argument in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_pages_that_cannot_be_wrapped(device: Device, region: Region, read_only: int) -> None:
    page = device.info.page_alignment
    refused = {
        "must be multiples": Pages(region.address + 64, page),
        "address and length": Pages(region.address, 0),
        "is not accessible": Pages(region.address, region.capacity),
    }
    for reason, pages in refused.items():
        with pytest.raises(WrapRefusedError, match=f"cannot be shared with .*{reason}") as caught:
            device.wrap(pages)
        assert "\n" not in str(caught.value)
    if not device.info.wraps_files:
        with pytest.raises(WrapRefusedError, match="is read-only"):
            device.wrap(Pages(read_only, page))
    assert device.counters.bytes_shared == 0


class Misuse:
    """A device, a foreign one, and what is needed to call each wrongly."""

    def __init__(self, device: Device, opener: Callable[[], Device]) -> None:
        self.device, self._opener = device, opener
        self.vectors = Vectors(device, 2, 16)
        self.good = self.vectors[0]

    @cached_property
    def other(self) -> Device:
        return self._opener()

    @cached_property
    def foreign(self) -> Vectors:
        return Vectors(self.other, 1, 16)

    def list(self):
        return doubling(self.device, self.vectors)

    def add(self, *bindings: Binding) -> None:
        add(self.device.record(), *bindings, self.good, self.good)

    def dispatch(self, buffers: int = 3, params: int | None = None, groups: tuple[int, int, int] = (1, 1, 1)) -> None:
        kernel = CATALOG["add"]
        size = 4 * len(kernel.params) if params is None else params
        self.device.record().dispatch(kernel, [self.good] * buffers, bytes(size), groups)

    def closed_buffer(self):
        buffer = self.device.allocate(256)
        buffer.close()
        buffer.close()
        return buffer

    def closed_list(self):
        commands = self.list()
        commands.close()
        commands.close()
        return commands

    def unfinished(self):
        commands = self.device.record()
        add(commands, self.good, self.good, self.good)
        return commands

    def submit(self, *lists) -> None:
        self.device.submit(lists)

    def submit_twice(self) -> None:
        commands = long_list(self.device)
        first = self.device.submit([commands])
        try:
            self.device.submit([commands])
        finally:
            first.wait()

    def write(self, buffer, dtype: type = np.uint8, shape: tuple[int, ...] = (4,)) -> None:
        self.device.write(buffer, 0, np.zeros(shape, dtype))


MISUSE: dict[str, tuple[Callable[[Misuse], object], str]] = {
    "no bytes": (lambda m: m.device.allocate(0), "a buffer of 0 bytes cannot be allocated"),
    "fewer bytes than none": (lambda m: m.device.allocate(-1), "a buffer of -1 bytes cannot be allocated"),
    "a misaligned binding": (
        lambda m: m.add(Binding(m.vectors.buffer, m.device.info.offset_alignment // 2, 8)),
        "needs a multiple of",
    ),
    "a binding longer than its buffer": (
        lambda m: m.add(Binding(m.vectors.buffer, 0, 1 << 20)),
        "is not within its buffer",
    ),
    "a binding far outside": (lambda m: m.add(Binding(m.vectors.buffer, 1 << 40, 4)), "is not within its buffer"),
    "a binding before its buffer": (lambda m: m.add(Binding(m.vectors.buffer, -256, 4)), "is not within its buffer"),
    "an empty binding": (lambda m: m.add(Binding(m.vectors.buffer, 0, 0)), "is not within its buffer"),
    "a binding of another device's buffer": (lambda m: m.add(m.foreign[0]), "a buffer of another device"),
    "a binding of a closed buffer": (lambda m: m.add(Binding(m.closed_buffer(), 0, 64)), "the buffer is closed"),
    "too few buffers": (lambda m: m.dispatch(buffers=2), "kernel add takes 3 buffers, not 2"),
    "too many buffers": (lambda m: m.dispatch(buffers=4), "kernel add takes 3 buffers, not 4"),
    "short parameters": (lambda m: m.dispatch(params=1), r"kernel add takes \d+ bytes of parameters, not 1"),
    "long parameters": (lambda m: m.dispatch(params=128), r"kernel add takes \d+ bytes of parameters, not 128"),
    "an empty grid": (lambda m: m.dispatch(groups=(0, 1, 1)), "kernel add: a grid of"),
    "a negative grid": (lambda m: m.dispatch(groups=(1, 1, -1)), "kernel add: a grid of"),
    "a grid that nobody can count": (lambda m: m.dispatch(groups=(1, 1 << 32, 1)), "kernel add: a grid of"),
    "recording when finished": (lambda m: add(m.list(), m.good, m.good, m.good), "the command list is finished"),
    "finishing twice": (lambda m: m.list().finish(), "the command list is finished"),
    "recording when closed": (lambda m: add(m.closed_list(), m.good, m.good, m.good), "the command list is closed"),
    "finishing when closed": (lambda m: m.closed_list().finish(), "the command list is closed"),
    "submitting nothing": (lambda m: m.submit(), "at least one command list"),
    "submitting an unfinished list": (lambda m: m.submit(m.unfinished()), "the command list is not finished"),
    "submitting a closed list": (lambda m: m.submit(m.closed_list()), "the command list is closed"),
    "submitting a pending list": (lambda m: m.submit_twice(), "a command list is still pending"),
    "submitting another device's list": (
        lambda m: m.submit(doubling(m.other, m.foreign)),
        "a command list of another device",
    ),
    "copying bytes of another dtype": (
        lambda m: m.write(m.vectors.buffer, np.float32),
        "must be one-dimensional uint8, not 1-dimensional float32",
    ),
    "copying a matrix": (lambda m: m.write(m.vectors.buffer, shape=(2, 2)), "not 2-dimensional uint8"),
    "copying to another device's buffer": (lambda m: m.write(m.foreign.buffer), "a buffer of another device"),
    "copying to a closed buffer": (lambda m: m.write(m.closed_buffer()), "the buffer is closed"),
    "looking at a closed buffer": (lambda m: m.closed_buffer().view(), "the buffer is closed"),
}


@pytest.mark.parametrize("misuse", MISUSE)
def test_misuse_is_an_error(lasting: Device, opener: Callable[[], Device], misuse: str) -> None:
    """One line, and the device is as good as before."""
    act, message = MISUSE[misuse]
    m = Misuse(lasting, opener)
    with pytest.raises(DeviceError, match=message) as caught:
        act(m)
    assert "\n" not in str(caught.value)
    m.vectors.view(0)[:] = 4
    lasting.submit([m.list()]).wait()
    assert np.all(m.vectors.view(0) == 8)
    assert lasting.counters.bytes_copied == 0


def test_a_closed_device(opener: Callable[[], Device], region: Region) -> None:
    device = opener()
    buffer, ran, begun = device.allocate(64), recorded(device), device.record()
    device.close()
    device.close()
    data = np.zeros(4, np.uint8)
    uses: list[Callable[[], object]] = [
        lambda: device.allocate(64),
        lambda: device.wrap(region.aperture(0, region.size)),
        device.record,
        lambda: device.submit([ran]),
        lambda: device.write(buffer, 0, data),
        lambda: device.read(buffer, 0, data),
        lambda: device.load(buffer, 0, data),
    ]
    for use in uses:
        with pytest.raises(DeviceError, match="the device is closed"):
            use()
    for use in (buffer.view, lambda: buffer.address, lambda: buffer.device_address):
        with pytest.raises(DeviceError, match="the buffer is closed"):
            use()
    with pytest.raises(DeviceError, match="the command list is closed"):
        begun.finish()
