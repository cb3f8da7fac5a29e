"""A stream ends, whatever its reader does and whoever ends the guest."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from wasmetal import Guest, Limits
from wasmetal.errors import GuestError

FLOOD = b"""(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1) (data (i32.const 0) "\\08\\00\\00\\00\\01\\00\\00\\00x")
    (func (export "_start")
        (loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))) (br 0))))"""
SLACK = 20.0
"""Seconds that a busy machine may take for what takes none."""


def ended(guest: Guest, begin: float, seconds: float) -> None:
    """The guest's thread has ended, at most ``seconds`` after ``begin``."""
    assert guest._calls.current is not None
    while not guest._calls.current.ended:
        assert time.monotonic() - begin < seconds + SLACK
        time.sleep(0.01)
    assert time.monotonic() - begin < seconds + SLACK


def flood(guest: Guest) -> Iterator[str]:
    """The stream of a guest that is held up by its reader."""
    stream = guest.stream()
    next(stream)
    time.sleep(0.2)
    return stream


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda guest: None, "0.5 seconds of wall time"),
        (Guest.stop, "was stopped"),
        (Guest.close, "was closed"),
    ],
    ids=["limit", "stop", "close"],
)
@pytest.mark.parametrize("pause", [0.0, 1.0], ids=["reads on", "pauses"])
def test_a_guest_that_is_ended_while_it_floods(pause: float, end: Callable[[Guest], None], message: str) -> None:
    """By its limit, or from another thread while the reader reads or pauses."""
    with Guest(FLOOD, limits=Limits(wall_seconds=0.5)) as guest:
        ender = threading.Timer(0.3, end, [guest])
        begin = time.monotonic()
        stream = guest.stream()
        next(stream)
        ender.start()
        time.sleep(pause)
        with pytest.raises(GuestError, match=message):
            for _ in stream:
                pass
        ended(guest, begin, max(pause, 0.5))
        ender.join()


@pytest.mark.parametrize("leave", ["close", "drop", "break"])
def test_a_reader_that_leaves(leave: str) -> None:
    with Guest(FLOOD) as guest:
        stream = flood(guest)
        begin = time.monotonic()
        if leave == "close":
            stream.close()  # type: ignore[attr-defined]
        elif leave == "break":
            for _ in stream:
                break
        del stream
        gc.collect()
        ended(guest, begin, 1)
        with pytest.raises(GuestError, match="no longer read"):
            guest.run()


def test_a_reader_that_raises() -> None:
    def read() -> None:
        for _ in flood(guest):
            raise OSError("the client has gone")

    with Guest(FLOOD) as guest:
        begin = time.monotonic()
        with pytest.raises(OSError, match="the client has gone"):
            read()
        gc.collect()
        ended(guest, begin, 1)


def test_a_reader_that_pauses_does_not_delay_the_limit() -> None:
    with Guest(FLOOD, limits=Limits(wall_seconds=0.3)) as guest:
        begin = time.monotonic()
        stream = guest.stream()
        next(stream)
        ended(guest, begin, 0.3)  # nobody reads meanwhile
        with pytest.raises(GuestError, match="wall time"):
            list(stream)
