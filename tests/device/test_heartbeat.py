"""The thread that keeps an idle device warm: it beats, and it ends."""

from __future__ import annotations

import gc
import threading

import pytest

from wasmetal.device import heartbeat as module
from wasmetal.device.heartbeat import Heartbeat


class Wanted:
    """What is kept: it counts its beats, and can be made to want no more."""

    def __init__(self) -> None:
        self.beats = threading.Semaphore(0)
        self.more = True

    def beat(self) -> bool:
        self.beats.release()
        return self.more


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.001)


def ended(heartbeat: Heartbeat) -> None:
    thread = heartbeat._thread
    if thread is not None:
        thread.join(10)
        assert not thread.is_alive()


def beats(wanted: Wanted, count: int = 3) -> bool:
    return all(wanted.beats.acquire(timeout=10) for _ in range(count))


def test_it_beats_after_a_use_until_nothing_is_wanted() -> None:
    wanted = Wanted()
    heartbeat = Heartbeat(wanted.beat)
    assert not heartbeat.alive
    heartbeat.use()
    assert beats(wanted)
    wanted.more = False
    ended(heartbeat)
    assert not heartbeat.alive
    wanted.more = True
    heartbeat.hasten()
    heartbeat.use()
    assert beats(wanted)
    heartbeat.stop()
    ended(heartbeat)


def test_it_ends_some_time_after_the_last_use() -> None:
    seconds = [0.0]
    wanted = Wanted()
    heartbeat = Heartbeat(wanted.beat, lambda: seconds[0])
    heartbeat.use()
    assert beats(wanted)
    seconds[0] = module.LASTS
    ended(heartbeat)
    assert not heartbeat.alive


def test_a_stopped_one_does_not_start() -> None:
    wanted = Wanted()
    heartbeat = Heartbeat(wanted.beat)
    heartbeat.stop()
    heartbeat.use()
    assert not heartbeat.alive


@pytest.mark.parametrize("dropped", ["what it keeps", "the heartbeat"])
def test_it_keeps_nobody_alive(dropped: str) -> None:
    wanted = Wanted()
    heartbeat = Heartbeat(wanted.beat)
    heartbeat.use()
    assert beats(wanted)
    thread = heartbeat._thread
    assert thread is not None
    if dropped == "the heartbeat":
        del heartbeat
    else:
        del wanted
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
