"""Guests that share a device: neither holds the other up, each is charged for its own work, and time is divided."""

from __future__ import annotations

import contextlib
import gc
import heapq
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from wasmetal import Limits, load_model
from wasmetal.device import Device
from wasmetal.device.base import Submission
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.errors import DeviceTimeoutError, GuestError
from wasmetal.host import abi, fairness
from wasmetal.host.account import Account
from wasmetal.host.errno import Errno
from wasmetal.host.fairness import LEFT_BEHIND, SLICE, Share
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.metering import MeteredDevice

SOFTMAX, ADD, SCALE = 11, 9, 10


def add(buffer: int) -> Any:
    x = tensor(buffer, (4,))
    return command(ADD, x, x, tensor(buffer, (4,), 64))


@contextlib.contextmanager
def background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Work of a guest on a thread, until the guest is stopped."""

    def run() -> None:
        with contextlib.suppress(GuestError):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(60)
        assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that in a minute")


@pytest.mark.parametrize("shared", [True, False], ids=["own pages", "device memory"])
def test_a_long_list_does_not_hold_up_another_guest(device: Device, shared: bool) -> None:
    """The list of the first guest is far from its end when the second is done with everything."""
    count = 4000
    size = (2 if device.info.name.startswith("emulated") else 32) * PAGE
    with Probe(device, pages=80, maximum=80) as busy, Probe(device) as quick:
        buffer = busy.share(40 * PAGE, size) if shared else busy.allocate(size)
        x = tensor(buffer, (1, size // 4))
        pending = busy.start(*[command(SOFTMAX, x, x)] * count)
        with background(lambda: busy.submission_wait(pending, abi.FOREVER)) as thread:
            until(lambda: busy.guest.counters.dispatches > 0)  # it has begun
            own, mine = quick.allocate(4096), quick.share()
            for _ in range(3):
                quick.run(add(mine))
                quick.run(add(own))
                assert quick.buffer_read(own, 0, PAGE, 64) == Errno.SUCCESS
                assert quick.device_describe(128) == Errno.SUCCESS
            assert thread.is_alive()
            done = busy.guest.counters.dispatches
            busy.guest.stop()
        assert 0 < done < count
        assert (quick.guest.counters.submits, quick.guest.counters.dispatches) == (6, 6)


def test_nothing_is_locked_while_another_guest_waits() -> None:
    """Every call but a wait returns at once while the device works for another guest, for ever."""

    class Endless:
        pending, seconds, dispatches = True, 0.0, 1

        def abandon(self) -> None:
            pass

        def wait(self, timeout: float | None = None) -> None:
            assert timeout is not None
            time.sleep(timeout)
            raise DeviceTimeoutError("not done")

    class EndlessDevice(CpuDevice):
        def submit(self, lists: Any) -> Any:
            return Endless()

    device = EndlessDevice()
    with Probe(device) as busy, Probe(device) as other:
        pending = busy.start(add(busy.allocate(128)))
        with background(lambda: busy.submission_wait(pending, abi.FOREVER)) as thread:
            mine = other.share()
            own = other.allocate(128)
            assert other.buffer_write(own, 0, PAGE, 64) == Errno.SUCCESS
            assert other.buffer_read(own, 0, PAGE, 64) == Errno.SUCCESS
            submission = other.start(add(own))
            assert other.submission_wait(submission, 0) == Errno.TIMEDOUT
            assert other.buffer_destroy(mine) == Errno.SUCCESS
            assert thread.is_alive()
            busy.guest.stop()


def test_counters_are_each_guests_own(device: Device) -> None:
    """Exact, whatever the other guest does meanwhile."""

    def work(probe: Probe, rounds: int) -> None:
        buffer, own = probe.share(), probe.allocate(4096)
        for _ in range(rounds):
            probe.run(add(buffer), add(own))
            assert probe.buffer_write(own, 0, PAGE, 128) == Errno.SUCCESS
            assert probe.buffer_read(own, 0, PAGE, 64) == Errno.SUCCESS

    before = device.counters.as_dict()
    with Probe(device) as one, Probe(device) as other:
        with background(lambda: work(one, 50)), background(lambda: work(other, 30)):
            pass
        for probe, rounds in ((one, 50), (other, 30)):
            counters = probe.guest.counters
            assert counters.submits == rounds
            assert counters.dispatches == 2 * rounds
            assert counters.bytes_copied == 192 * rounds
            assert counters.bytes_shared == 4 * PAGE
            assert counters.host_calls == 2 + 4 * rounds
            assert counters.bytes_loaded == 0
        mine, its = one.guest.counters.device_seconds, other.guest.counters.device_seconds
        assert min(mine, its) > 0
        # The device may also have come to the remains of a guest that was stopped before.
        assert mine + its <= (device.counters.device_seconds - before["device_seconds"]) * (1 + 1e-9)


def test_what_a_model_costs_is_counted_for_the_guest_that_uses_it(device: Device, tmp_path: Any) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    with load_model(path, device) as model:
        grants = {"models": {"m": model}}
        with Probe(device, **grants) as one, Probe(device, **grants) as other:
            before = device.counters.as_dict()
            for probe, tokens in ((one, 3), (other, 2)):
                probe.put(128, b"m")
                assert probe.model_open(128, 1, probe.OUT) == Errno.SUCCESS
                assert probe.session_open(probe.u32(), probe.OUT) == Errno.SUCCESS
                session = probe.u32()
                for _ in range(tokens):
                    probe.put(256, b"\x05\0\0\0")
                    assert probe.session_forward(session, 256, 1, 0) == Errno.SUCCESS
            mine, its = one.guest.counters, other.guest.counters
            assert (mine.submits, its.submits) == (3, 2)
            assert mine.dispatches * 2 == its.dispatches * 3 > 0
            after = device.counters.as_dict()
            assert mine.dispatches + its.dispatches == after["dispatches"] - before["dispatches"]
            assert mine.bytes_loaded == its.bytes_loaded == 0  # the host's model
    with Probe(device, models={"m": path}) as owner:
        loaded = owner.guest.counters
        assert loaded.bytes_loaded + loaded.bytes_shared > 0
        assert loaded.submits == 0


def test_a_list_is_cut_where_it_takes_long(cpu: Device) -> None:
    """So that others get in between: several submissions, all of whose commands run, in order."""
    with Probe(cpu, limits=Limits(commands=2000)) as probe:
        buffer = probe.share()
        probe.put(PAGE, b"\0\0\x80\x3f" * PAGE)
        x = tensor(buffer, (PAGE,))
        probe.run(*[command(SCALE, x, x, attributes=(2.0,))] * 100)
        assert (probe.floats(PAGE, PAGE) == 2.0**100).all()
        assert probe.guest.counters.dispatches == 100
        assert probe.guest.counters.submits >= 2


# ---- Whose turn it is, with a device whose seconds are the test's own


def charge(share: Share, seconds: float) -> None:
    """A submission of the guest's that took so long has ended."""
    share.submitted(cast(Submission, SimpleNamespace(pending=False, seconds=seconds, dispatches=0)))
    share.settle()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fairness, "time", clock)
    return clock


def test_the_guest_that_used_less_goes_first(clock: Clock) -> None:
    device = CpuDevice()
    one, other = Share(device), Share(device)
    with one, other:
        assert one.has_turn()
        assert other.has_turn()
        charge(one, SLICE / 2)
        assert one.has_turn()  # within the slice
        charge(one, SLICE)
        assert not one.has_turn()
        assert other.has_turn()
        charge(other, SLICE)
        assert one.has_turn()


def test_time_is_not_saved_up(clock: Clock) -> None:
    """A guest that comes late, or comes back, starts where the others stand."""
    device = CpuDevice()
    one, late = Share(device), Share(device)
    with one:
        charge(one, 100.0)
        with late:
            assert one.has_turn()
            charge(late, 2 * SLICE)
            assert not late.has_turn()
    clock.now += 10.0
    with one:
        charge(one, 50.0)
        with late:
            charge(late, 2 * SLICE)
            assert not late.has_turn()


def test_a_guest_that_went_does_not_count(clock: Clock) -> None:
    device = CpuDevice()
    one, other = Share(device), Share(device)
    with one:
        with other:
            charge(other, 0.0)
            charge(one, 10 * SLICE)
            assert not one.has_turn()
        assert not one.has_turn()  # it may come back at once
        clock.now += 1.0
        assert one.has_turn()


def test_a_turn_that_is_not_used_is_forgone(clock: Clock) -> None:
    """Or a guest that asks for one over and over would hold up all others."""
    device = CpuDevice()
    one, other, idle = Share(device), Share(device), Share(device)
    with one, other:
        charge(other, 9 * SLICE)
        with idle:
            charge(one, 10.5 * SLICE)
            assert not one.has_turn()
        assert not one.has_turn()  # because of the other guest
        charge(other, SLICE)
        with idle:
            pass
        assert one.has_turn()


def test_many_guests_and_little_work_of_each(clock: Clock) -> None:
    """Nobody gets ahead of the others by doing little at a time; one that comes late starts where they stand."""
    device = CpuDevice()
    shares = [Share(device) for _ in range(20)]
    with contextlib.ExitStack() as stack:
        for share in shares:
            stack.enter_context(share)
        for share in shares * 100:
            charge(share, SLICE / 50)
        late = Share(device)
        with late:
            assert all(share.has_turn() for share in [late, *shares])
            for _ in range(60):
                charge(shares[0], SLICE / 50)
            assert not shares[0].has_turn()
            assert late.has_turn()
            for _ in range(60):
                charge(late, SLICE / 50)
            assert not late.has_turn()
            assert shares[1].has_turn()


def test_a_closed_guest_does_not_count() -> None:
    device = CpuDevice()
    one, other = Share(device), Share(device)
    with one, other:
        charge(one, 10 * SLICE)
    other.close()
    other.close()
    assert one.has_turn()


def test_a_guest_that_was_closed_leaves_no_queue(clock: Clock) -> None:
    """What it left on the device holds back everybody's next submission, for a while."""
    device = CpuDevice()
    one, other, closed = Share(device), Share(device), Share(device)
    submission = SimpleNamespace(pending=True, seconds=1.0)
    closed.submitted(submission)
    assert one.has_turn()
    closed.close()
    assert not one.has_turn()
    submission.pending = False
    assert one.has_turn()
    submission.pending = True
    again = Share(device)
    again.submitted(submission)
    again.close()
    assert not other.has_turn()
    clock.now += LEFT_BEHIND
    assert other.has_turn()  # the device may have hung, and nobody would notice who did not submit


def test_what_a_closed_guest_leaves_behind_keeps_nothing_alive() -> None:
    """Neither the guest nor the device, of which nobody asks any more whether it has ended."""
    device, account = CpuDevice(), Account(Limits())
    metered = MeteredDevice(device, account, Interrupt(account))
    metered.share.submitted(cast(Submission, SimpleNamespace(pending=True)))
    metered.close()
    alive = [weakref.ref(device), weakref.ref(metered)]
    del device, metered
    gc.collect()
    assert [each() for each in alive] == [None, None]


def test_devices_are_apart() -> None:
    one, other = Share(CpuDevice()), Share(CpuDevice())
    with one, other:
        charge(one, 100.0)
        assert one.has_turn()


def test_a_turn_that_does_not_come_can_be_given_up() -> None:
    device = CpuDevice()
    one, other = Share(device), Share(device)
    with one, other:
        charge(one, 1.0)

        def stop() -> None:
            raise GuestError("stopped")

        with pytest.raises(GuestError, match="stopped"):
            one.wait_turn(stop)


def test_steps_wait_for_their_turn() -> None:
    """Those of a forward pass, when nothing is held that others could be waiting for."""
    device = CpuDevice()
    account = Account(Limits())
    one, other = MeteredDevice(device, account, Interrupt(account)), Share(device)
    taken: list[int] = []

    def steps() -> Generator[None]:
        for step in range(3):
            yield None
            taken.append(step)
            charge(one.share, 1.0)

    with other:
        thread = threading.Thread(target=lambda: one.drive(steps()), daemon=True)
        thread.start()
        for done in ([0], [0, 1], [0, 1, 2]):
            until(lambda done=done: taken == done)  # type: ignore[misc]
            time.sleep(0.1)
            assert taken == done
            charge(other, 1.0)
        thread.join(60)


def test_a_turn_comes_when_the_other_has_caught_up() -> None:
    device = CpuDevice()
    one, other = Share(device), Share(device)
    order: list[str] = []

    def wait() -> None:
        with one:
            one.wait_turn(lambda: None)
            order.append("one")

    with other:
        with one:
            charge(one, 1.0)
        thread = threading.Thread(target=wait)
        thread.start()
        for _ in range(9):
            order.append("other")
            charge(other, 0.1)
        assert "one" not in order
        charge(other, 0.1)
        thread.join(60)
    assert order[-1] == "one"


@pytest.mark.parametrize("pause", [0.00001, 0.0005, 0.004])
@pytest.mark.parametrize("short", [0.00001, 0.001, 0.005])
def test_time_is_divided_and_not_the_number_of_submissions(clock: Clock, short: float, pause: float) -> None:
    """Ten milliseconds at a time against less, with a pause after each: simulated.

    What counts is the time that the device was there for a guest: its lists, and its pauses if the other waited.
    """
    device = CpuDevice()
    events: list[tuple[float, int]] = []
    free_at = clock.now

    def guest(seconds: float) -> Iterator[tuple[float, float]]:
        """Yields when it goes on, and what the device has spent for it by then."""
        nonlocal free_at
        share, spent = Share(device), 0.0
        while True:
            with share:
                while not share.has_turn():
                    yield clock.now + 1e-5, spent
                free_at = max(free_at, clock.now) + seconds  # behind what was submitted before
                yield free_at, spent
                charge(share, seconds)
            spent += seconds
            yield clock.now + pause, spent

    guests, spent = [guest(0.010), guest(short)], [0.0, 0.0]
    events = [(clock.now, 0), (clock.now, 1)]
    while clock.now < 1003.0:
        clock.now, who = heapq.heappop(events)
        again, spent[who] = next(guests[who])
        heapq.heappush(events, (again, who))
    times = [spent[0] * (1 + pause / 0.010), spent[1] * (1 + pause / short)]
    assert 0.75 < times[0] / times[1] < 1.33, spent


def test_two_greedy_guests_get_about_the_same_time(cpu: Device) -> None:
    """One submits long lists, the other shorter ones, over and over."""
    size = 16 * PAGE // 4
    with Probe(cpu, pages=24) as long, Probe(cpu, pages=24) as short:
        probes = (long, short)
        tensors = [tensor(probe.share(4 * PAGE, 16 * PAGE), (1, size)) for probe in probes]
        over = threading.Event()

        def greedy(probe: Probe, x: Any, count: int) -> None:
            while not over.is_set():
                probe.run(*[command(SOFTMAX, x, x)] * count)

        with background(lambda: greedy(long, tensors[0], 300)), background(lambda: greedy(short, tensors[1], 60)):
            until(lambda: sum(probe.guest.counters.device_seconds for probe in probes) > 1.5)
            seconds = [probe.guest.counters.device_seconds for probe in probes]
            over.set()
    assert min(seconds) > 0.25 * max(seconds), seconds
