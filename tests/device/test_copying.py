"""Staged copies, without a device: whole, in chunks, and never through a staging buffer that may still be in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmetal.device import MemoryKind, copying
from wasmetal.device.backend import Backend, Range
from wasmetal.device.base import Bytes


class Memory:
    def __init__(self, nbytes: int, visible: bool) -> None:
        self.bytes = np.zeros(nbytes, np.uint8)
        self.address = self.bytes.ctypes.data if visible else None

    def view(self) -> Bytes:
        assert self.address is not None
        return self.bytes


class Hidden:
    """A backend with device memory that the host cannot see."""

    def __init__(self) -> None:
        self.made: list[Memory] = []
        self.copies: list[tuple[Memory, Memory]] = []
        self.interrupted = False

    def allocate(self, nbytes: int, kind: MemoryKind) -> Memory:
        self.made.append(Memory(nbytes, kind is MemoryKind.SHARED))
        return self.made[-1]

    begin_copies = Backend.begin_copies

    def copy(self, source: Range[Memory], target: Range[Memory]) -> None:
        self.copies.append((source.allocation, target.allocation))
        if self.interrupted:
            raise KeyboardInterrupt
        data = source.allocation.bytes[source.offset :][: source.nbytes]
        target.allocation.bytes[target.offset :][: target.nbytes] = data


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK", 100)


def test_what_the_host_does_not_see_is_copied_in_chunks() -> None:
    backend, copier = Hidden(), copying.Copier()
    memory = backend.allocate(1000, MemoryKind.DEVICE)
    data = np.random.default_rng(0).integers(1, 256, 730, dtype=np.uint8)
    assert copier.copy_in(backend, memory, 45, [data]) == 730
    assert np.array_equal(memory.bytes[45:775], data)
    assert not memory.bytes[:45].any()
    assert not memory.bytes[775:].any()
    out = np.empty_like(data)
    copier.copy_out(backend, memory, 45, out)
    assert np.array_equal(out, data)
    assert len(backend.copies) == 16
    assert len(backend.made) == 2  # one staging buffer for all of it


def test_what_the_host_sees_is_copied_at_once() -> None:
    backend, copier = Hidden(), copying.Copier()
    memory = backend.allocate(1000, MemoryKind.SHARED)
    copier.copy_in(backend, memory, 10, [np.full(300, 7, np.uint8)])
    out = np.empty(310, np.uint8)
    copier.copy_out(backend, memory, 0, out)
    assert out.tolist() == [0] * 10 + [7] * 300
    assert backend.copies == []


@pytest.mark.parametrize("kind", MemoryKind)
@given(sizes=st.lists(st.sampled_from([0, 1, 30, 99, 100, 101, 250]), max_size=8))
def test_arrays_are_copied_one_after_the_other(kind: MemoryKind, sizes: list[int]) -> None:
    """In full chunks, however they are cut."""
    backend, copier = Hidden(), copying.Copier()
    memory = backend.allocate(3000, kind)
    data = [np.random.default_rng(size).integers(1, 256, size, dtype=np.uint8) for size in sizes]
    assert copier.copy_in(backend, memory, 45, data) == sum(sizes)
    assert memory.bytes[45 : 45 + sum(sizes)].tobytes() == b"".join(map(bytes, data))
    assert not memory.bytes[:45].any()
    assert not memory.bytes[45 + sum(sizes) :].any()
    assert len(backend.copies) == (-(-sum(sizes) // 100) if kind is MemoryKind.DEVICE else 0)


class Late(Hidden):
    """A backend that copies as late as it may."""

    def begin_copies(self, pairs: Sequence[tuple[Range[Memory], Range[Memory]]]) -> Callable[[], None]:
        def wait() -> None:
            for source, target in pairs:
                self.copy(source, target)

        return wait


@pytest.mark.parametrize("late", [False, True])
@given(
    kinds=st.lists(st.sampled_from(MemoryKind), min_size=1, max_size=12),
    sizes=st.lists(st.sampled_from([0, 1, 3, 20, 49, 60, 150]), max_size=3),
)
def test_rows_go_to_several_allocations(late: bool, kinds: list[MemoryKind], sizes: list[int]) -> None:
    backend, copier = Late() if late else Hidden(), copying.Copier()
    memories = [backend.allocate(500, kind) for kind in kinds]
    rng = np.random.default_rng(len(kinds))
    data = [rng.integers(1, 256, (len(kinds), size), dtype=np.uint8) for size in sizes]
    assert copier.copy_rows_in(backend, memories, 45, data) == sum(sizes) * len(kinds)
    for row, memory in enumerate(memories):
        expected = b"".join([bytes(45), *(each[row].tobytes() for each in data)])
        assert memory.bytes.tobytes() == expected.ljust(500, b"\0")
    assert len(backend.made) - len(memories) <= 1  # one staging buffer
    out = [np.zeros(each.shape, np.uint8) for each in data]
    assert copier.copy_rows_out(backend, memories, 45, out) == sum(sizes) * len(kinds)
    assert all(map(np.array_equal, out, data))


def test_rows_that_are_on_their_way_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the staging buffer could be freed while the device reads it."""
    backend, copier = Late(), copying.Copier()
    memories = [backend.allocate(50, MemoryKind.DEVICE) for _ in range(9)]
    copy, copied = copying.Rows.copy, []

    def interrupted(rows: copying.Rows, first: int, targets: Sequence[int]) -> None:
        copied.append(first)
        if len(copied) == 4:
            raise KeyboardInterrupt
        copy(rows, first, targets)

    monkeypatch.setattr(copying.Rows, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copier.copy_rows_in(backend, memories, 0, [np.ones((9, 50), np.uint8)])
    assert [bool(memory.bytes.all()) for memory in memories] == [True] * 3 + [False] * 6


def test_after_an_interrupt_the_staging_buffer_is_another() -> None:
    """The device may still be using the first."""
    backend, copier = Hidden(), copying.Copier()
    memory = backend.allocate(1000, MemoryKind.DEVICE)
    backend.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        copier.copy_in(backend, memory, 0, [np.ones(50, np.uint8)])
    backend.interrupted = False
    copier.copy_in(backend, memory, 0, [np.ones(50, np.uint8)])
    (first, _), (second, _) = backend.copies
    assert first is not second


def test_rows_that_the_device_still_writes_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the staging buffer could be freed while the device writes it."""
    backend, copier = Late(), copying.Copier()
    memories = [backend.allocate(50, MemoryKind.DEVICE) for _ in range(9)]
    begun = 0
    begin_copies, copied = Late.begin_copies, []

    def counted(self: Late, pairs: Sequence[tuple[Range[Memory], Range[Memory]]]) -> Callable[[], None]:
        nonlocal begun
        begun += 1
        wait = begin_copies(self, pairs)
        return lambda: copied.append(wait())

    def interrupted(rows: copying.Rows, first: int, sources: Sequence[int]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Late, "begin_copies", counted)
    monkeypatch.setattr(copying.Rows, "fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copier.copy_rows_out(backend, memories, 0, [np.ones((9, 50), np.uint8)])
    assert len(copied) == begun == 2
