"""Each limit, reached: an errno, or an error that names it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.host.probe import PAGE, Probe, command, tensor
from wasmetal import Guest, Limits
from wasmetal.device import Device
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.errors import DeviceTimeoutError, GuestError, LimitError
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.kernels.reference import KERNELS

SPIN = b'(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'


def module(body: str) -> bytes:
    return f"(module {body})".encode()


def run(code: bytes, **limits: Any) -> int:
    with Guest(code, limits=Limits(**limits)) as guest:
        return guest.run()


def test_memory_at_the_start() -> None:
    with pytest.raises(LimitError, match="131072 bytes of linear memory"):
        Guest(module("(memory 3)"), limits=Limits(memory_bytes=2 * PAGE))
    Guest(module("(memory 2)"), limits=Limits(memory_bytes=2 * PAGE)).close()


def test_memory_by_growing() -> None:
    code = module('(memory (export "memory") 1) (func (export "grow") (result i32) (memory.grow (i32.const 1)))')
    with Guest(code, limits=Limits(memory_bytes=2 * PAGE)) as guest:
        assert guest.call("grow") == 1
        assert guest.call("grow") == -1


def test_memories() -> None:
    with pytest.raises(LimitError, match="1 linear memories"):
        Guest(module("(memory 1) (memory 1)"))
    Guest(module("(memory 1) (memory 1)"), limits=Limits(memories=2)).close()


def test_tables() -> None:
    with pytest.raises(GuestError, match="table"):
        Guest(module("(table 10000000 funcref)"))


def test_wall_time() -> None:
    begin = time.monotonic()
    with pytest.raises(LimitError, match=r"0\.1 seconds of wall time"):
        run(SPIN, wall_seconds=0.1)
    assert time.monotonic() - begin >= 0.1


def test_wall_time_of_a_start_function() -> None:
    with pytest.raises(LimitError, match="wall time"):
        Guest(module("(func $f (loop (br 0))) (start $f)"), limits=Limits(wall_seconds=0.1))


def test_wall_time_while_asleep() -> None:
    """An hour of sleep, which nothing but the limit ends."""
    code = module("""
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 3600000000000))
            (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))""")
    with pytest.raises(LimitError, match="wall time"):
        run(code, wall_seconds=0.1)


def test_wall_time_counts_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("wasmetal.host.account.time", clock)
    with Guest(module('(func (export "f"))'), limits=Limits(wall_seconds=0.5)) as guest:
        for _ in range(3):
            clock.now += 0.4
            guest.call("f")
        clock.now += 0.6
        with pytest.raises(LimitError):
            guest._account.check_clock()


def test_wall_time_while_the_device_works() -> None:
    class Stuck(CpuDevice):
        pending, seconds, dispatches = True, 0.0, 1

        def abandon(self) -> None:
            pass

        def submit(self, lists: Any) -> Any:
            return self

        def wait(self, timeout: float | None = None) -> None:
            time.sleep(timeout)
            raise DeviceTimeoutError("stuck")

    with Probe(Stuck()) as probe:
        x = tensor(probe.share(), (4,))
        submission = probe.start(command(9, x, x, x))
        probe.guest._account.limits = Limits(wall_seconds=0.2)  # now, since a busy machine could take as long till here
        with pytest.raises(LimitError, match=r"0\.2 seconds of wall time"):
            probe.submission_wait(submission, abi.FOREVER)


def test_a_stopped_guest_stays_stopped() -> None:
    with Guest(SPIN, limits=Limits(wall_seconds=0.05)) as guest:
        with pytest.raises(LimitError):
            guest.run()
        with pytest.raises(GuestError, match="cannot go on"):
            guest.run()


def test_handles(device: Device) -> None:
    with Probe(device, limits=Limits(handles=3)) as probe:
        buffers = [probe.share(), probe.allocate(64)]
        x = tensor(buffers[0], (4,))
        submission = probe.start(command(9, x, x, x))
        assert probe.buffer_create(PAGE, PAGE, 1, probe.OUT) == Errno.MFILE
        assert probe.buffer_create_device(64, 1, probe.OUT) == Errno.MFILE
        assert probe.try_submit(command(9, x, x, x)) == Errno.MFILE
        assert probe.submission_wait(submission, abi.FOREVER) == Errno.SUCCESS
        assert probe.allocate(64)


def test_device_memory(device: Device) -> None:
    with Probe(device, limits=Limits(device_bytes=4096)) as probe:
        assert probe.buffer_create_device(4097, 1, probe.OUT) == Errno.NOMEM
        buffer = probe.allocate(4000)
        assert probe.buffer_create_device(97, 1, probe.OUT) == Errno.NOMEM
        assert probe.buffer_destroy(buffer) == Errno.SUCCESS
        probe.allocate(4096)
        probe.share()  # the guest's own memory is no device memory


def test_device_memory_that_could_not_be_had_is_not_charged() -> None:
    class Full(CpuDevice):
        def allocate(self, *_: Any) -> Any:
            raise MemoryError

    with Probe(Full(), limits=Limits(device_bytes=4096)) as probe:
        for _ in range(3):
            assert probe.buffer_create_device(4096, 1, probe.OUT) == Errno.IO
        assert probe.guest._account.device_bytes == 0


def test_commands_of_a_list(device: Device) -> None:
    with Probe(device, limits=Limits(commands=4)) as probe:
        x = tensor(probe.share(), (4,))
        add = command(9, x, x, x)
        assert probe.try_submit(*[add] * 5) == Errno.TOOBIG
        probe.run(*[add] * 4)


def test_commands_pending(device: Device) -> None:
    with Probe(device, limits=Limits(commands=4)) as probe:
        x = tensor(probe.share(), (4,))
        add = command(9, x, x, x)
        first = probe.start(*[add] * 3)
        assert probe.try_submit(add, add) == Errno.AGAIN
        second = probe.start(add)
        assert probe.submission_wait(first, abi.FOREVER) == Errno.SUCCESS
        probe.run(add, add, add)
        assert probe.submission_wait(second, 0) == Errno.SUCCESS


def test_a_million_commands(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by its length, and not after a look at each command."""

    def encode(*_: Any) -> Any:
        raise AssertionError("looked at")

    monkeypatch.setattr("wasmetal.host.submissions.encode", encode)
    nbytes = 10**6 * abi.COMMAND.itemsize
    with Probe(device, pages=1) as probe:
        assert probe.commands_submit(0, nbytes, probe.OUT) == Errno.FAULT
    pages = -(-nbytes // PAGE) + 1
    with Probe(device, pages=pages, maximum=pages) as probe:
        assert probe.commands_submit(PAGE, nbytes, probe.OUT) == Errno.TOOBIG


def test_device_seconds(device: Device) -> None:
    with Probe(device, limits=Limits(device_seconds=1e-9)) as probe:
        x = tensor(probe.share(), (4,))
        submission = probe.start(command(9, x, x, x))
        with pytest.raises(LimitError, match="1e-09 seconds of device time"):
            probe.submission_wait(submission, abi.FOREVER)


@pytest.mark.parametrize("limit", ["device_seconds", "wall_seconds"])
def test_a_long_list_ends_at_the_limit(limit: str, reference: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when its last kernel has run; what is left of it is dropped with the guest."""
    softmax, runs = KERNELS["softmax"], []

    def counted(*args: Any) -> Any:
        run = softmax(*args)
        return lambda: (run(), runs.append(1))

    monkeypatch.setitem(KERNELS, "softmax", counted)
    with Probe(reference, pages=80, maximum=80) as probe:
        x = tensor(probe.share(70 * PAGE, 8 * PAGE), (131072,))
        submission = probe.start(*[command(11, x, x)] * 16_000)
        probe.guest._account.limits = Limits(**{limit: 0.05})  # now, since a busy machine could take as long till here
        with pytest.raises(LimitError, match=r"0\.05 seconds of (device|wall) time"):
            probe.submission_wait(submission, abi.FOREVER)
    with Probe(reference) as probe:
        x = tensor(probe.share(), (4,))
        probe.run(command(9, x, x, x))
        assert probe.guest.counters.dispatches == 1
    assert len(runs) < 16_000


@pytest.mark.parametrize("name", ["memory_bytes", "device_bytes", "handles", "commands", "wall_seconds"])
def test_a_limit_is_not_negative(name: str) -> None:
    with pytest.raises(GuestError, match=name):
        Limits(**{name: -1})


def test_a_limit_of_nothing() -> None:
    with Probe(CpuDevice(), limits=Limits(handles=0, device_bytes=0, commands=0)) as probe:
        assert probe.buffer_create(PAGE, PAGE, 1, probe.OUT) == Errno.MFILE
        assert probe.try_submit(command(9)) == Errno.TOOBIG
