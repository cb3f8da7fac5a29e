"""Calls on several threads: all results in order, the first error, and the same without any thread to be had."""

from __future__ import annotations

import _thread
import threading

import pytest

from wasmetal.actor.threads import Ahead, each


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture(params=["threads", "refused", "never begin"])
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "threads":
        monkeypatch.setattr(_thread, "start_new_thread", refuse if request.param == "refused" else lambda *_: 1)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_results_are_in_order(count: int, threads: int) -> None:
    assert each(lambda number: number * number, range(count), threads) == [number * number for number in range(count)]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_ends_it(threads: int) -> None:
    begun = []

    def call(number: int) -> None:
        begun.append(number)
        if number == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        each(call, range(10_000), threads)
    assert len(begun) < 10_000


def test_calls_are_made_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=60)
    assert len(set(each(lambda _: together.wait(), range(3), 3))) == 3


@pytest.mark.usefixtures("_threads")
def test_a_call_that_was_begun_is_made_once() -> None:
    calls: list[int] = []
    ahead = Ahead(lambda: calls.append(1) or len(calls))
    assert [ahead.result(), ahead.result()] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        Ahead(lambda: 1 // 0).result()
