"""Submitting and waiting, apart from any device: what is locked, what is refused, and when a submission is settled."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from wasmetal.counters import Counters
from wasmetal.device import abandoned
from wasmetal.device.queue import Queue
from wasmetal.errors import DeviceError, DeviceLostError, DeviceTimeoutError

LONG = 30
"""A timeout in seconds that no test reaches."""


class Work:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.waited_for = threading.Event()
        self.results = 0
        self.error: Exception | None = None
        self.lost_in = ""
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True

    def wait(self, seconds: float) -> bool:
        self.waited_for.set()
        self.lose("wait")
        return self.end.wait(seconds)

    def ended(self) -> bool:
        self.lose("ended")
        return self.end.is_set()

    def lose(self, method: str) -> None:
        if self.lost_in == method:
            raise DeviceLostError("fell out of the machine")

    def result(self) -> tuple[float, Exception | None]:
        self.results += 1
        return 0.25, self.error


class Backend:
    in_order = True
    info = SimpleNamespace(name="a device")

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.prepare: Callable[[list[object]], None] = lambda recordings: None

    def start(self, recordings: list[object]) -> Work:
        self.works.append(Work())
        return self.works[-1]


class List(SimpleNamespace):
    __hash__ = object.__hash__
    pending = property(lambda self: self.submission is not None and self.submission.pending)


class Recording:
    dispatches = 2


def a_list() -> List:
    return List(recording=Recording(), submission=None)


class Fixture(Backend):
    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters()
        self.queue = Queue(self, self.counters)

    def submit(self, *lists: SimpleNamespace):
        return self.queue.submit(lists or (a_list(),))


def raising(error: BaseException) -> Callable[[object], Work]:
    def broken(recordings: object) -> Work:
        raise error

    return broken


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


def test_a_wait_has_time_to_prepare(made: Fixture) -> None:
    """For what is waited for, before the wait; never for what has ended, or on a lost or closed device."""
    prepared: list[object] = []
    made.prepare = prepared.append
    commands = [a_list() for _ in range(2)]
    first, second = (made.submit(each) for each in commands)
    waiting, results = in_thread(second.wait)
    assert made.works[1].waited_for.wait(LONG)
    assert prepared == [[commands[1].recording]]
    for work in made.works:
        work.end.set()
    waiting.join(LONG)
    assert results == [None]
    for _ in range(2):
        first.wait(LONG)
    assert prepared == [[commands[1].recording]]
    third, fourth = made.submit(), made.submit()
    made.works[2].lost_in = "wait"
    with pytest.raises(DeviceLostError):
        third.wait(LONG)
    prepared.clear()
    made.works[3].end.set()
    fourth.wait(LONG)
    assert prepared == []


def test_an_interrupted_preparation(made: Fixture) -> None:
    """The submission goes on, and can still be waited for."""
    submission = made.submit()
    made.prepare = raising(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        submission.wait()
    assert submission.pending
    made.prepare = lambda recordings: None
    made.works[0].end.set()
    submission.wait(LONG)
    assert not submission.pending


def test_a_pending_list_is_refused_until_its_submission_has_ended(made: Fixture) -> None:
    commands = a_list()
    first = made.submit(commands)
    for lists in ((commands,), (a_list(), commands)):
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
    commands = a_list()
    with monkeypatch.context() as patch:
        patch.setattr(made, "start", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            made.submit(commands)
    assert made.counters == Counters()
    made.submit(commands)


def test_recordings_live_until_they_have_ended(made: Fixture) -> None:
    """Though their list was closed."""
    commands = a_list()
    recording = weakref.ref(commands.recording)
    submission = made.submit(commands)
    del commands.recording
    gc.collect()
    assert recording() is not None
    made.works[0].end.set()
    submission.wait()
    gc.collect()
    assert recording() is None


@pytest.mark.parametrize("ends", ["it ends", "the device is lost"])
def test_recordings_outlive_a_queue_that_everybody_drops(ends: str) -> None:
    """Until their work has ended. A lost device has ended all of it."""
    backend = Backend()
    queue = Queue(backend, Counters())
    commands = a_list()
    recording, gone = weakref.ref(commands.recording), weakref.ref(queue)
    queue.submit([commands])
    work = backend.works[0]
    del queue, commands
    gc.collect()
    assert gone() is None
    assert work.dropped
    abandoned.release_ended()
    assert recording() is not None
    if ends == "it ends":
        work.end.set()
    else:
        work.lost_in = "ended"
    abandoned.release_ended()
    del work
    backend.works.clear()
    gc.collect()
    assert recording() is None


@pytest.mark.parametrize("when", ["start", "wait", "result", "ended"])
def test_a_lost_device_gets_no_more_work(made: Fixture, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Whichever call says so: all submissions then end with that error, and further ones are refused."""
    lost = DeviceLostError("fell out of the machine")
    first, second = made.submit(), made.submit()
    if when == "start":
        with monkeypatch.context() as patch:
            patch.setattr(made, "start", raising(lost))
            with pytest.raises(DeviceLostError, match="fell out"):
                made.submit()
        made.works[0].end.set()
        first.wait()
    else:
        for work in made.works:
            work.lost_in = when
            if when == "result":
                work.error = lost
                work.end.set()
        if when != "ended":  # then nobody waits
            for submission in (second, first, first):
                with pytest.raises(DeviceLostError, match="fell out"):
                    submission.wait(LONG)
    with pytest.raises(DeviceLostError, match="the device was lost: open it again"):
        made.submit()
    assert len(made.works) == 2
    assert first.pending is False
    made.queue.close()
