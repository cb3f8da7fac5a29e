"""Limits on time hold whatever the process lacks: threads, memory, or the thread that ticks."""

from __future__ import annotations

import _thread
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.security.apart import run_apart
from wasmetal import Guest, Limits, Program
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.errors import GuestError, LimitError
from wasmetal.host import abi, threads, ticker
from wasmetal.host.guest_thread import GuestThread
from wasmetal.host.runtime import runtime
from wasmetal.host.threads import HostThread
from wasmetal.host.ticker import Ticker

SPIN = b'(module (func (export "_start") (loop (br 0))))'
NOTHING = b'(module (func (export "_start")))'
HOARDER = f"""(module (import "{abi.GPU}" "buffer_create_device" (func $create (param i64 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "hoard") (result i32) (local $count i32)
        (loop (if (call $create (i64.const 1) (i32.const 3) (i32.const 64)) (then (return (local.get $count))))
            (local.set $count (i32.add (local.get $count) (i32.const 1))) (br 0))
        unreachable))""".encode()
"""Makes as many device buffers of one byte as it may."""
SLACK = 20.0
"""Seconds that a busy machine may take for what takes none."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds + SLACK


# ---- No threads left


@contextmanager
def no_more_threads() -> Iterator[None]:
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if os.getuid() == 0:  # root is above the limit
        user = 2**30 + os.getpid()  # nobody's, so that the threads of other processes do not count
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))


def refused(function: Callable[[], object]) -> None:
    with within(0), pytest.raises(GuestError, match="cannot start a thread: can't start new thread"):
        function()


def stopped_in_time() -> None:
    with within(0.3), Guest(SPIN, limits=Limits(wall_seconds=0.3)) as guest, pytest.raises(LimitError):
        guest.run()


def before_the_first_guest() -> None:
    with no_more_threads():
        for _ in range(3):
            refused(lambda: Guest(NOTHING))
    stopped_in_time()


def between_two_runs() -> None:
    closed, guest = Guest(NOTHING), Guest(NOTHING)
    assert guest.run() == 0
    with no_more_threads():
        for _ in range(3):
            refused(guest.run)
            refused(lambda: list(guest.stream()))
            refused(lambda: Guest(NOTHING))
        with within(0):
            closed.close()
    stopped_in_time()
    assert guest.run() == 0
    guest.close()


def at_the_first_compilation() -> None:
    os.environ["WASMETAL_NO_PROGRAM_CACHE"] = "1"
    runtime()
    with no_more_threads():
        program = Program(NOTHING)
    assert Guest(program).run() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NPROC counts threads on Linux only")
@pytest.mark.parametrize("moment", [before_the_first_guest, at_the_first_compilation, between_two_runs])
def test_no_threads_left(moment: Callable[[], None]) -> None:
    """What needs one is refused while it lasts; the process goes on, and limits hold afterwards."""
    run_apart(moment)


def test_a_thread_that_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no memory for its first frame. The guest is neither running nor lost."""
    guest = Guest(NOTHING)
    with monkeypatch.context() as patch:
        patch.setattr(threads, "_PATIENCE", 0.05)
        patch.setattr(_thread, "start_new_thread", lambda *_: 1)
        with within(0.05), pytest.raises(GuestError, match="it has not begun"):
            guest.run()
    assert guest.run() == 0
    guest.close()


def test_a_thread_that_begins_too_late_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    late, called = [], []
    monkeypatch.setattr(threads, "_PATIENCE", 0.05)
    monkeypatch.setattr(_thread, "start_new_thread", lambda function, _: late.append(function))
    thread = HostThread(lambda: called.append(1))
    with pytest.raises(GuestError):
        thread.start()
    late[0]()
    assert thread.ended
    assert called == []


def test_ctrl_c_before_a_thread_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with Guest(NOTHING) as guest:
        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", interrupt)
            with pytest.raises(KeyboardInterrupt):
                guest.run()
        assert guest.run() == 0


def test_a_thread_that_ends_without_a_result() -> None:
    """As where there is no memory for the exception that it ended with."""
    call = GuestThread(lambda: 0)
    call._function = lambda: None
    call.start()
    assert call.wait(SLACK)
    with pytest.raises(GuestError, match="out of memory"):
        call.result()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_many_tiny_buffers_leave_room_for_threads() -> None:
    """A thread needs a mapping, of which a process has 65,530. Each buffer was one."""

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("\n")

    before = mappings()
    device = CpuDevice()
    guests = [Guest(HOARDER, device=device) for _ in range(4)]
    assert [guest.call("hoard") for guest in guests] == [1024] * 4
    assert mappings() - before < 512
    for guest in guests:
        guest.close()


# ---- No ticker


class Dead(Ticker):
    """Its thread has ended; it is seen to be dead ``after`` seconds from now."""

    def __init__(self, after: float) -> None:
        super().__init__(runtime().engine.increment_epoch)
        self._seen = time.monotonic() + after - ticker._FRESH

    def _run(self) -> None:
        return


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "_PATIENCE", 0.2)


def test_no_guest_runs_without_a_ticker(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    with Guest(SPIN) as guest:
        monkeypatch.setattr(runtime(), "ticker", dead := Dead(after=0))
        for attempt in guest.run, lambda: list(guest.stream()), lambda: Guest(NOTHING):
            with within(0.2), pytest.raises(GuestError, match="does not run"):
                attempt()
        assert dead._running == []


@pytest.mark.parametrize("run", [Guest.run, lambda guest: list(guest.stream())], ids=["run", "stream"])
def test_a_guest_ends_if_the_ticker_dies(
    run: Callable[[Guest], object], monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    with Guest(SPIN) as guest:
        monkeypatch.setattr(runtime(), "ticker", Dead(after=0.3))
        with within(0.5), pytest.raises(GuestError, match="does not run"):
            run(guest)
        assert guest._calls.current is not None
        assert guest._calls.current.ended


@pytest.mark.parametrize("end", [Guest.stop, Guest.close])
def test_a_dead_ticker_does_not_keep_a_guest_from_being_stopped(
    end: Callable[[Guest], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest(SPIN)
    time.sleep(0.3)  # until the living one sleeps
    monkeypatch.setattr(runtime(), "ticker", Dead(after=3600))  # nobody notices
    errors: list[BaseException] = []

    def run() -> None:
        try:
            guest.run()
        except GuestError as error:
            errors.append(error)

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    while guest._calls.current is None or guest._calls.current.ended:
        time.sleep(0.001)
    time.sleep(0.05)
    with within(0):
        end(guest)
        runner.join(2 * SLACK)
    assert len(errors) == 1
    guest.close()


def test_a_late_ticker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's global lock can be held for seconds; that is no reason to refuse guests."""
    slow = Dead(after=-3600)
    monkeypatch.setattr(runtime(), "ticker", slow)
    threading.Timer(0.5, lambda: setattr(slow, "_seen", time.monotonic() + 3600)).start()
    with Guest(NOTHING) as guest:
        assert guest.run() == 0


def test_a_ticker_that_sleeps_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Ticker(lambda: None)
    monkeypatch.setattr(ticker, "_FRESH", 0.05)
    time.sleep(0.2)
    idle.check()


def test_it_ticks_only_while_guests_run() -> None:
    ticks: list[float] = []
    new = Ticker(lambda: ticks.append(time.monotonic()))
    for _ in range(2):
        with new.ticking(), new.ticking():
            count, give_up = len(ticks), time.monotonic() + SLACK
            while len(ticks) < count + 3:
                assert time.monotonic() < give_up
                time.sleep(ticker.TICK_SECONDS)
        end = time.monotonic()
        time.sleep(0.3)
        assert len([tick for tick in ticks if tick > end]) <= 2  # one that had begun, and a last one


def test_it_survives_a_lack_of_memory() -> None:
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) < 3:
            raise MemoryError

    new = Ticker(tick)
    with new.ticking(), within(0):
        while len(ticks) < 5:
            time.sleep(ticker.TICK_SECONDS)
