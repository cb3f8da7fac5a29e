"""Host pages registered with the driver, in place of which a list keeps the rules that CUDA documents."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cuda.bindings")

from wasmetal.device.cuda import registered
from wasmetal.device.cuda.registered import Registry
from wasmetal.errors import OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.pages import page_size

COUNT = 12
"""Pages to wrap ranges of."""


class Driver:
    """Registers ranges as the driver does: none twice, and only registered ones are given back, whole."""

    def __init__(self) -> None:
        self.ranges: dict[int, int] = {}
        self.left: int | None = None
        """Registrations until it is out of memory."""

    def call(self, function: str, start: int, nbytes: int = 0, flags: int = 0) -> None:
        if function == "cuMemHostUnregister":
            del self.ranges[start]
            return
        assert function == "cuMemHostRegister"
        if self.left == 0:
            raise OutOfDeviceMemoryError("the device is out of memory")
        if any(start < at + size and at < start + nbytes for at, size in self.ranges.items()):
            raise WrapRefusedError("registered already")
        self.ranges[start] = nbytes
        self.left = None if self.left is None else self.left - 1

    def covers(self, start: int, nbytes: int) -> bool:
        """Whether every byte of a range is registered."""
        at = start
        while at < start + nbytes:
            here = next((begin + size for begin, size in self.ranges.items() if begin <= at < begin + size), None)
            if here is None:
                return False
            at = here
        return True


class Context:
    def use(self) -> None:
        pass

    def release(self, function: Callable[..., object], *args: object) -> None:
        function(*args)


class Owner:
    """What a range is registered for."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    monkeypatch.setattr(registered, "call", made.call)
    yield made
    gc.collect()
    assert not made.ranges


@pytest.fixture
def pages() -> np.ndarray:
    raw = np.zeros((COUNT + 1) * page_size(), np.uint8)
    start = -raw.ctypes.data % page_size()
    return raw[start : start + COUNT * page_size()]


def some(pages: np.ndarray, first: int, count: int) -> np.ndarray:
    return pages[first * page_size() : (first + count) * page_size()]


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.integers(0, COUNT - 1), st.integers(1, COUNT)),  # wrap these pages
            st.integers(0, 30),  # drop one of those that are wrapped
        ),
        max_size=30,
    )
)
def test_overlapping_wraps_in_any_order(driver: Driver, pages: np.ndarray, steps: list) -> None:
    """Whatever is wrapped is registered, nothing is registered twice, and in the end nothing is."""
    registry, held = Registry(), []
    for step in steps:
        if isinstance(step, tuple):
            view = some(pages, step[0], min(step[1], COUNT - step[0]))
            owner = Owner()
            registry.register(owner, Context(), view)
            held.append((owner, view))
        elif held:
            held.pop(step % len(held))
        owner = None  # else it would outlive its place in the list
        assert all([driver.covers(view.ctypes.data, view.size) for _, view in held])
    held.clear()
    assert not driver.ranges


def test_growth(driver: Driver, pages: np.ndarray) -> None:
    """A longer wrap of the same pages registers what is new, and outlives the shorter one."""
    registry, short, longer = Registry(), Owner(), Owner()
    registry.register(short, Context(), some(pages, 0, 4))
    registry.register(longer, Context(), some(pages, 0, 8))
    assert sorted(driver.ranges.values()) == [4 * page_size()] * 2
    del short
    assert driver.covers(pages.ctypes.data, 8 * page_size())
    del longer
    assert not driver.ranges


@pytest.mark.parametrize("left", [0, 1])
def test_a_refusal_leaves_nothing_behind(driver: Driver, pages: np.ndarray, left: int) -> None:
    """If the driver refuses a part of a range, the parts before it are given back."""
    registry, middle = Registry(), Owner()
    registry.register(middle, Context(), some(pages, 4, 2))
    driver.left = left
    with pytest.raises(OutOfDeviceMemoryError):
        registry.register(Owner(), Context(), some(pages, 0, COUNT))
    assert list(driver.ranges.values()) == [2 * page_size()]
    driver.left = None
    everything = Owner()
    registry.register(everything, Context(), some(pages, 0, COUNT))
    assert driver.covers(pages.ctypes.data, pages.size)
    del middle, everything


def test_a_finalizer_while_the_lock_is_held(driver: Driver, pages: np.ndarray) -> None:
    """Garbage may be collected in the middle of a registration: what is dropped then is given back later."""
    registry, owner, other = Registry(), Owner(), Owner()
    registry.register(owner, Context(), some(pages, 0, 1))
    with registry._lock:
        del owner
        assert len(driver.ranges) == 1
    registry.register(other, Context(), some(pages, 2, 1))
    assert list(driver.ranges) == [some(pages, 2, 1).ctypes.data]
    del other


def test_threads(driver: Driver, pages: np.ndarray) -> None:
    registry, problems = Registry(), []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            for _ in range(200):
                first = int(random.integers(COUNT))
                owner = Owner()
                registry.register(owner, Context(), some(pages, first, int(random.integers(1, COUNT - first + 1))))
                del owner
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    registry.register(last := Owner(), Context(), some(pages, 0, 1))  # settles what finalizers left
    del last
