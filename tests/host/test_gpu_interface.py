"""``wasmetal_gpu``, driven by a guest that forwards what the test says."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.host.probe import PAGE, Probe, command, tensor
from wasmetal import Limits
from wasmetal.device import Device
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.errors import DeviceError, DeviceLostError, DeviceTimeoutError, GuestError, LimitError
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.host.recording import SEGMENT

MATMUL, EMBED, RMS_NORM, SILU_MUL, ADD, SCALE = 1, 3, 4, 8, 9, 10
I32 = 26


class LaggingDevice(CpuDevice):
    """A device that works when told to, or once it was looked at so many times: a real one does so by itself."""

    def __init__(self, looks: int | None = 3) -> None:
        super().__init__()
        self.looks = looks
        self.under_way: list[LaggingSubmission] = []
        self.error: Exception | None = None
        self.submit_error: Exception | None = None

    def submit(self, lists: Sequence[Any]) -> Any:
        if self.submit_error:
            raise self.submit_error
        submission = LaggingSubmission(self, lambda: super(LaggingDevice, self).submit(lists).wait())
        self.under_way.append(submission)
        return submission

    def work(self) -> None:
        for submission in self.under_way:
            submission.finish()
        self.under_way = []


class LaggingSubmission:
    seconds, dispatches = 0.125, 1

    def __init__(self, device: LaggingDevice, run: Any) -> None:
        self._device, self._run, self.done, self.looks = device, run, False, device.looks

    @property
    def pending(self) -> bool:
        return not self.done

    def abandon(self) -> None:
        pass

    def finish(self) -> None:
        if not self.done:
            self._run()
            self.done = True

    def wait(self, timeout: float | None = None) -> None:
        if self._device.error:
            raise self._device.error
        assert timeout is not None, "the host looks at its limits from time to time"
        if self.looks == 0:
            self.finish()
        if not self.done:
            self.looks = None if self.looks is None else self.looks - 1
            raise DeviceTimeoutError("not done")


@pytest.fixture(params=[False, True], ids=["memory32", "memory64"])
def probe(device: Device, request: pytest.FixtureRequest) -> Any:
    with Probe(device, memory64=request.param, limits=Limits(device_bytes=1 << 20, handles=16)) as probe:
        yield probe


def add(buffer: int, offset: int = 0, n: int = 16) -> Any:
    """out = x + x, out right behind x."""
    x = tensor(buffer, (n,), offset)
    return command(ADD, x, x, tensor(buffer, (n,), offset + 4 * n))


def test_the_device_computes_on_the_guests_own_bytes(probe: Probe) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 16, 16), dtype=np.float32)
    probe.put(PAGE, a)
    probe.put(PAGE + 4096, b)
    buffer = probe.share()
    shape = (16, 16)
    probe.run(command(MATMUL, tensor(buffer, shape), tensor(buffer, shape, 4096), tensor(buffer, shape, 8192)))
    np.testing.assert_allclose(probe.floats(PAGE + 8192, 256).reshape(shape), a @ b, rtol=1e-5, atol=1e-5)
    counters = probe.guest.counters
    assert counters.bytes_copied == 0
    assert counters.bytes_shared == 4 * PAGE
    assert (counters.submits, counters.dispatches, counters.host_calls) == (1, 1, 3)


def test_device_buffers_go_through_counted_copies(probe: Probe) -> None:
    x = np.arange(16, dtype=np.float32)
    buffer = probe.allocate(128)
    probe.put(PAGE, x)
    assert probe.buffer_write(buffer, 0, PAGE, 64) == Errno.SUCCESS
    probe.run(add(buffer))
    assert probe.buffer_read(buffer, 64, PAGE + 64, 64) == Errno.SUCCESS
    np.testing.assert_array_equal(probe.floats(PAGE + 64, 16), 2 * x)
    assert probe.guest.counters.bytes_copied == 128
    assert probe.guest.counters.bytes_shared == 0


def test_device_memory_is_zero_before_a_guest_sees_it(probe: Probe) -> None:
    for _ in range(3):
        buffer = probe.allocate(4096)
        probe.put(PAGE, b"\xff" * 4096)
        assert probe.buffer_read(buffer, 0, PAGE, 4096) == Errno.SUCCESS
        assert not probe.bytes[PAGE : PAGE + 4096].any()
        probe.put(PAGE, b"\xff" * 4096)
        assert probe.buffer_write(buffer, 0, PAGE, 4096) == Errno.SUCCESS
        assert probe.buffer_destroy(buffer) == Errno.SUCCESS


def test_a_list_is_taken_whole_when_submitted(probe: Probe) -> None:
    """The guest may overwrite its commands at once; the data is read when the device runs."""
    buffer = probe.share()
    submission = probe.start(add(buffer))
    probe.put(4096, b"\xff" * abi.COMMAND.itemsize)
    probe.put(PAGE, np.full(16, 3, np.float32))
    assert probe.submission_wait(submission, abi.FOREVER) == Errno.SUCCESS
    assert (probe.floats(PAGE + 64, 16) == 6).all()


def test_a_list_that_touches_guest_memory_runs_while_the_guest_waits() -> None:
    device = LaggingDevice()
    with Probe(device) as probe:
        shared, own = probe.share(), probe.allocate(128)
        first, second, third = probe.start(add(own)), probe.start(add(shared)), probe.start(add(own))
        assert len(device.under_way) == 1  # the third is behind the second
        assert probe.submission_wait(second, 0) == Errno.SUCCESS  # 0 does not cut short what uses the guest's pages
        assert len(device.under_way) == 2
        assert probe.submission_wait(third, abi.FOREVER) == Errno.SUCCESS
        assert probe.submission_wait(first, 0) == Errno.SUCCESS
        assert probe.submission_wait(first, 0) == Errno.BADF


def test_waiting_for_device_memory_can_time_out() -> None:
    device = LaggingDevice(looks=None)
    with Probe(device) as probe:
        buffer = probe.allocate(128)
        submission = probe.start(add(buffer))
        assert probe.submission_wait(submission, 0) == Errno.TIMEDOUT
        assert probe.submission_wait(submission, 1000) == Errno.TIMEDOUT
        assert probe.buffer_destroy(buffer) == Errno.BUSY
        assert probe.buffer_read(buffer, 0, PAGE, 4) == Errno.BUSY
        assert probe.buffer_write(buffer, 0, PAGE, 4) == Errno.BUSY
        device.work()
        assert probe.submission_wait(submission, 0) == Errno.SUCCESS
        assert probe.buffer_destroy(buffer) == Errno.SUCCESS


def test_submissions_take_effect_in_order(probe: Probe) -> None:
    """A number doubles, in device memory, then shared and device memory by turns; only the last one is waited for."""
    own, shared = tensor(probe.allocate(256), (4,)), tensor(probe.share(), (4,))
    probe.put(PAGE, np.ones(4, np.float32))
    assert probe.buffer_write(int(own["buffer"]), 0, PAGE, 16) == Errno.SUCCESS
    steps = [(own, own)] * 4 + [(own, shared), (shared, own), (own, own), (own, shared)]
    submissions = [probe.start(command(ADD, source, source, out)) for source, out in steps]
    assert probe.submission_wait(submissions[-1], abi.FOREVER) == Errno.SUCCESS
    assert (probe.floats(PAGE, 4) == 2.0 ** len(steps)).all()
    for submission in submissions[:-1]:
        assert probe.submission_wait(submission, 0) == Errno.SUCCESS


def test_a_buffer_in_use_cannot_be_destroyed(probe: Probe) -> None:
    buffer = probe.share()
    submission = probe.start(add(buffer))
    assert probe.buffer_destroy(buffer) == Errno.BUSY
    assert probe.submission_wait(submission, abi.FOREVER) == Errno.SUCCESS
    assert probe.buffer_destroy(buffer) == Errno.SUCCESS
    assert probe.try_submit(add(buffer)) == Errno.BADF


def test_the_same_bytes_are_recorded_once() -> None:
    class Counting(CpuDevice):
        records = 0

        def record(self) -> Any:
            self.records += 1
            return super().record()

    device = Counting()
    with Probe(device) as probe:
        buffer, other = probe.share(), probe.share()
        for _ in range(10):
            probe.run(add(buffer))
        assert device.records == 1
        pending = probe.start(add(buffer))
        probe.run(add(buffer))  # the first is still under way: a list is not replayed beside itself
        assert probe.submission_wait(pending, 0) == Errno.SUCCESS
        assert device.records == 2
        probe.run(add(other))
        assert device.records == 3
        assert probe.buffer_destroy(buffer) == Errno.SUCCESS
        assert probe.try_submit(add(buffer)) == Errno.BADF  # and not the list from before


def test_a_list_is_run_in_one_call(probe: Probe) -> None:
    """The same as to submit it and to wait for it: when it is new, replayed, and after lists that are still pending."""
    shared, own = probe.share(), probe.allocate(128)
    probe.put(4096, add(shared).tobytes())
    for value in (1, 2, 3):
        probe.put(PAGE, np.full(16, value, np.float32))
        before = probe.guest.counters.submits
        assert probe.commands_run(4096, abi.COMMAND.itemsize) == Errno.SUCCESS
        assert (probe.floats(PAGE + 64, 16) == 2 * value).all()
        assert probe.guest.counters.submits == before + 1
    counters = probe.guest.counters
    assert (counters.submits, counters.dispatches, counters.host_calls) == (3, 3, 5)
    assert counters.device_seconds > 0
    pending = [probe.start(add(own)), probe.start(add(shared, 64))]
    assert probe.commands_run(4096, probe.put(4096, add(shared, 128).tobytes())) == Errno.SUCCESS
    assert (probe.floats(PAGE + 192, 16) == 24).all()
    assert [probe.submission_wait(each, 0) for each in pending] == [Errno.SUCCESS] * 2
    assert probe.buffer_destroy(shared) == probe.buffer_destroy(own) == Errno.SUCCESS
    assert probe.commands_run(4096, abi.COMMAND.itemsize) == Errno.BADF


def test_a_list_that_is_run_in_one_call_may_have_many_segments(probe: Probe) -> None:
    buffer = probe.share()
    doublings = [command(ADD, x, x, x) for x in [tensor(buffer, (16,))]] * 3 * SEGMENT
    size = probe.put(4096, b"".join(each.tobytes() for each in doublings))
    for _ in range(2):
        probe.put(PAGE, np.ones(16, np.float32))
        assert probe.commands_run(4096, size) == Errno.SUCCESS
        assert (probe.floats(PAGE, 16) == 2.0 ** len(doublings)).all()


@pytest.mark.parametrize("times", [1, 3])
def test_a_failure_of_the_device_ends_a_list_that_is_run_in_one_call(times: int) -> None:
    device = LaggingDevice()
    with Probe(device) as probe:
        shared = probe.share()
        size = probe.put(4096, add(shared).tobytes())
        for _ in range(times):
            assert probe.commands_run(4096, size) == Errno.SUCCESS
        device.error = DeviceLostError("gone")
        assert probe.commands_run(4096, size) == Errno.NODEV
        device.error, device.submit_error = None, DeviceError("no")
        assert probe.commands_run(4096, size) == Errno.IO
        device.submit_error = None
        assert probe.commands_run(4096, size) == Errno.SUCCESS
        assert probe.buffer_destroy(shared) == Errno.SUCCESS


@pytest.mark.parametrize("looks", [0, None])
def test_limits_hold_for_lists_that_are_run_in_one_call(looks: int | None) -> None:
    device = LaggingDevice(looks=0)
    with Probe(device, limits=Limits(device_seconds=0.3)) as probe:
        size = probe.put(4096, add(probe.share()).tobytes())
        for _ in range(2):
            assert probe.commands_run(4096, size) == Errno.SUCCESS
        device.looks = looks
        with pytest.raises(LimitError, match=r"0\.3 seconds of device time"):
            probe.commands_run(4096, size)


def test_growing_keeps_buffers_valid(probe: Probe) -> None:
    buffer = probe.share()
    base = probe.region.address
    assert probe.guest.call("grow", 8) == 8
    assert probe.region.address == base
    probe.put(PAGE, np.full(16, 5, np.float32))
    probe.run(add(buffer))
    assert (probe.floats(PAGE + 64, 16) == 10).all()
    new = probe.share(8 * PAGE, 8 * PAGE)
    probe.put(8 * PAGE, np.full(16, 7, np.float32))
    probe.run(add(new))
    assert (probe.floats(8 * PAGE + 64, 16) == 14).all()


def test_growing_between_submit_and_wait(probe: Probe) -> None:
    buffer = probe.share()
    probe.put(PAGE, np.full(16, 5, np.float32))
    submission = probe.start(add(buffer))
    assert probe.guest.call("grow", 8) == 8
    assert probe.submission_wait(submission, abi.FOREVER) == Errno.SUCCESS
    assert (probe.floats(PAGE + 64, 16) == 10).all()


def test_two_guests_on_one_device(device: Device) -> None:
    with Probe(device) as one, Probe(device) as other:
        mine, its = one.share(), other.share()
        assert one.buffer_destroy(its) == Errno.BADF
        assert one.try_submit(add(its)) == Errno.BADF
        one.put(PAGE, np.full(16, 1, np.float32))
        other.put(PAGE, np.full(16, 2, np.float32))
        pending = one.start(add(mine))
        other.run(add(its))
        assert one.submission_wait(pending, abi.FOREVER) == Errno.SUCCESS
        assert (one.floats(PAGE + 64, 16) == 2).all()
        assert (other.floats(PAGE + 64, 16) == 4).all()
        assert (one.guest.counters.submits, other.guest.counters.submits) == (1, 1)
        other.guest.close()
        one.run(add(mine))


def test_device_info(probe: Probe, device: Device) -> None:
    assert probe.device_describe(128) == Errno.SUCCESS
    info = probe.bytes[128 : 128 + abi.DEVICE_INFO.itemsize].view(abi.DEVICE_INFO)[0]
    assert abi.Backend(info["backend"]).name.lower() == device.info.backend
    assert bytes(info["name"]).rstrip(b"\0").decode() == device.info.name[:80]
    assert info["page_size"] % device.info.page_alignment == 0
    assert (info["memory_limit"], info["handle_limit"]) == (1 << 20, 16)


def test_counters_are_the_guests_own(probe: Probe) -> None:
    probe.run(add(probe.share()))
    assert probe.counters_read(128) == Errno.SUCCESS
    record = probe.bytes[128 : 128 + abi.COUNTERS.itemsize].view(abi.COUNTERS)[0]
    assert (record["bytes_copied"], record["bytes_shared"], record["submits"]) == (0, 4 * PAGE, 1)
    assert record["host_calls"] == probe.guest.counters.host_calls == 4


def test_usage_is_enforced(probe: Probe) -> None:
    readable, writable = probe.share(usage=abi.Usage.READ), probe.share(usage=abi.Usage.WRITE)
    x, out = tensor(readable, (4,)), tensor(writable, (4,), 64)
    probe.run(command(SCALE, x, out, attributes=(2.0,)))
    assert probe.try_submit(command(SCALE, x, tensor(readable, (4,), 64))) == Errno.PERM
    assert probe.try_submit(command(SCALE, tensor(writable, (4,)), out)) == Errno.PERM
    in_place = tensor(writable, (1, 1, 2))
    assert probe.try_submit(command(5, in_place, in_place, in_place)) == Errno.PERM  # rope reads, too


@pytest.mark.parametrize("operands", [2, 3])
def test_optional_operands(probe: Probe, operands: int) -> None:
    buffer = probe.share()
    x = tensor(buffer, (2, 4))
    batch = tensor(buffer, (3, 2), 1024, dtype=I32)
    probe.put(PAGE, np.full(8, 2, np.float32))
    probe.put(PAGE + 1024, np.array([1, 0, 0, 0, 0, 0], np.int32))
    out = tensor(buffer, (2, 4), 512)
    probe.run(command(SILU_MUL, x, x, out, batch if operands == 3 else None))
    written = probe.floats(PAGE + 512, 8) != 0
    assert written.tolist() == [True] * 4 + [operands == 2] * 4


def test_a_failure_of_the_device_ends_the_submission() -> None:
    device = LaggingDevice()
    with Probe(device) as probe:
        shared, own = probe.share(), probe.allocate(128)
        running, waiting = probe.start(add(own)), probe.start(add(shared))
        device.error = DeviceLostError("gone")
        assert probe.submission_wait(waiting, 0) == Errno.NODEV
        assert probe.submission_wait(waiting, 0) == Errno.BADF
        assert probe.submission_wait(running, 0) == Errno.NODEV
        device.error = None
        assert probe.buffer_destroy(own) == Errno.SUCCESS
        assert probe.buffer_destroy(shared) == Errno.SUCCESS


def test_a_list_that_the_device_does_not_take_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    device = LaggingDevice()
    with Probe(device) as probe:
        shared, own = probe.share(), probe.allocate(128)
        pending = probe.start(add(shared))
        device.submit_error = DeviceError("no")
        assert probe.submission_wait(pending, 0) == Errno.IO
        assert "DeviceError: no" in caplog.text
        assert probe.submission_wait(pending, 0) == Errno.BADF
        assert probe.try_submit(add(own)) == Errno.IO
        device.submit_error = None
        assert probe.buffer_destroy(own) == Errno.SUCCESS
        probe.run(add(shared))


def test_errors_of_the_host_do_not_reach_the_guest(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(CpuDevice):
        def wrap(self, aperture: Any) -> Any:
            raise ZeroDivisionError("a bug")

    with Probe(Broken()) as probe:
        assert probe.buffer_create(PAGE, PAGE, 3, probe.OUT) == Errno.IO
        assert "ZeroDivisionError: a bug" in caplog.text
        assert probe.allocate(64)


def test_device_time_is_limited_while_it_passes() -> None:
    with Probe(LaggingDevice(looks=None), limits=Limits(device_seconds=0.1)) as probe:
        submission = probe.start(add(probe.allocate(128)))
        with pytest.raises(LimitError, match=r"0\.1 seconds of device time"):
            probe.submission_wait(submission, abi.FOREVER)


def test_device_time_is_each_guests_own() -> None:
    device = LaggingDevice(looks=0)
    with Probe(device, limits=Limits(device_seconds=0.3)) as one, Probe(device) as other:
        mine, its = one.allocate(128), other.allocate(128)
        pending = [other.start(add(its)) for _ in range(8)]
        one.run(add(mine))
        assert one.guest.counters.device_seconds == 0.125
        for submission in pending:
            assert other.submission_wait(submission, abi.FOREVER) == Errno.SUCCESS
        assert other.guest.counters.device_seconds == 1.0
        one.run(add(mine))
        with pytest.raises(LimitError, match="device time"):
            one.run(add(mine))


def test_lists_that_start_together_count_once() -> None:
    with Probe(LaggingDevice()) as probe:
        buffer = probe.share()
        pending = [probe.start(add(buffer)) for _ in range(5)]
        assert probe.submission_wait(pending[-1], abi.FOREVER) == Errno.SUCCESS
        assert probe.guest.counters.device_seconds == 0.125


def test_a_guest_that_waits_for_the_device_can_be_stopped() -> None:
    with Probe(LaggingDevice(looks=None)) as probe:
        submission = probe.start(add(probe.allocate(128)))
        timer = threading.Timer(0.1, probe.guest.stop)
        timer.start()
        with pytest.raises(GuestError, match="was stopped"):
            probe.submission_wait(submission, abi.FOREVER)


def test_a_guest_leaves_nothing_behind(device: Device) -> None:
    with Probe(device) as probe:
        buffer, own = probe.share(), probe.allocate(4096)
        probe.run(add(buffer))
        probe.start(add(buffer), add(own))
        region = probe.region
    with pytest.raises(Exception, match="closed"):
        region.view()


def test_a_request_to_exit_ends_the_guest_and_reaches_the_caller() -> None:
    class Exiting(CpuDevice):
        def wrap(self, aperture: Any) -> Any:
            raise SystemExit(3)

    with Probe(Exiting()) as probe:
        with pytest.raises(SystemExit):
            probe.buffer_create(PAGE, PAGE, 3, probe.OUT)
        with pytest.raises(GuestError, match="cannot go on"):
            probe.device_describe(probe.OUT)
