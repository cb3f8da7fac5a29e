"""Submitting and waiting, apart from any device: what is locked, what is refused, and when a submission is settled."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from wasmetal.counters import Counters
from wasmetal.device.queue import Queue
from wasmetal.errors import DeviceError, DeviceTimeoutError

LONG = 30
"""A timeout in seconds that no test reaches."""


class Work:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.waited_for = threading.Event()
        self.results = 0
        self.error: Exception | None = None

    def wait(self, seconds: float) -> bool:
        self.waited_for.set()
        return self.end.wait(seconds)

    def ended(self) -> bool:
        return self.end.is_set()

    def result(self) -> tuple[float, Exception | None]:
        self.results += 1
        return 0.25, self.error


class Fixture:
    in_order = True
    info = SimpleNamespace(name="a device")

    def __init__(self) -> None:
        self.dropped: list[Work] = []
        self.counters = Counters()
        self.queue = Queue(self, self.counters)
        self.works: list[Work] = []

    def start(self, recordings: list[object]) -> Work:
        self.works.append(Work())
        return self.works[-1]

    def drop(self, work: Work) -> None:
        self.dropped.append(work)

    def list(self, dispatches: int = 2) -> SimpleNamespace:
        class List(SimpleNamespace):
            __hash__ = object.__hash__
            pending = property(lambda self: self.submission is not None and self.submission.pending)

        return List(recording=SimpleNamespace(dispatches=dispatches), submission=None)

    def submit(self, *lists: SimpleNamespace):
        return self.queue.submit(lists or (self.list(),))


@pytest.fixture
def made() -> Fixture:
    return Fixture()


def in_thread(call, *args) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call(*args))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_no_lock_is_held_while_waiting(made: Fixture) -> None:
    """While one thread waits, another submits, waits and is done; a third waits for the first submission too."""
    first = made.submit()
    waiting = [in_thread(first.wait) for _ in range(2)]
    assert made.works[0].waited_for.wait(LONG)
    second = made.submit()
    made.works[1].end.set()
    second.wait(LONG)
    assert first.pending
    made.works[0].end.set()
    for thread, results in waiting:
        thread.join(LONG)
        assert results == [None]
    assert [work.results for work in made.works] == [1, 1]
    assert made.counters == Counters(submits=2, dispatches=4, device_seconds=0.5)


def test_a_pending_list_is_refused_until_its_submission_has_ended(made: Fixture) -> None:
    commands = made.list()
    first = made.submit(commands)
    for lists in ((commands,), (made.list(), commands)):
        with pytest.raises(DeviceError, match="still pending"):
            made.submit(*lists)
    assert len(made.works) == 1
    made.works[0].end.set()
    made.submit(commands)  # it has ended, though nobody has waited for it
    assert not first.pending
    assert first.seconds == 0.25


def test_a_timeout_leaves_a_submission_pending(made: Fixture) -> None:
    submission = made.submit()
    with pytest.raises(DeviceTimeoutError, match=r"did not finish within 0\.001 seconds; it is still running"):
        submission.wait(0.001)
    assert submission.pending
    made.works[0].end.set()
    submission.wait(0)
    assert submission.seconds == 0.25


def test_an_error_is_raised_by_every_wait(made: Fixture) -> None:
    submission = made.submit()
    made.works[0].error = DeviceError("it is on fire")
    made.works[0].end.set()
    for _ in range(2):
        with pytest.raises(DeviceError, match="it is on fire"):
            submission.wait()
    assert made.works[0].results == 1
    made.submit()


def test_a_submission_that_cannot_start_leaves_nothing_behind(made: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = made.list()

    def broken(recordings: list[object]) -> Work:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made, "start", broken)
        with pytest.raises(KeyboardInterrupt):
            made.submit(commands)
    assert made.counters == Counters()
    made.submit(commands)


def test_what_ended_lets_go_of_what_it_used(made: Fixture) -> None:
    submission = made.submit()
    made.works[0].end.set()
    submission.wait()
    assert submission.recordings == ()
    assert submission.work is None
