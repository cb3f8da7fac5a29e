"""A device that does not come back from a kernel: waits for it end, and nothing that it uses is freed."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from tests.security.hanging import HangingDevice
from wasmetal import Limits, load_model
from wasmetal.device import Device, abandoned, open_device
from wasmetal.device import queue as device_queue
from wasmetal.errors import DeviceLostError, DeviceTimeoutError, GuestError, LimitError
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.kernels.reference import KERNELS
from wasmetal.memory import Region
from wasmetal.ops import DType, Recorder, Tensor, add, matmul

SCALE = 10
SLACK = 8.0
"""Seconds more than promised, because other processes may have the cores."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds + SLACK


@pytest.fixture
def hanging() -> Iterator[HangingDevice]:
    device = HangingDevice()
    yield device
    device.answers.set()
    device.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_queue, "PATIENCE", 0.2)


def scale(buffer: int) -> Any:
    x = tensor(buffer, (4,))
    return command(SCALE, x, x, attributes=(2.0,))


def give_up(device: HangingDevice) -> None:
    """A guest submits a list to a device that then hangs, and is closed."""
    with Probe(device) as probe:
        device.answers.clear()
        probe.start(scale(probe.allocate(64)))


# ---- Guests


@pytest.mark.parametrize("shared", [True, False], ids=["own pages", "device memory"])
def test_closing_a_guest_does_not_wait_for_the_device(hanging: HangingDevice, shared: bool) -> None:
    """Limits end its wait, and closing it does not wait; the pages that the device may write to stay mapped."""
    probe = Probe(hanging, limits=Limits(wall_seconds=0.3))
    buffer = probe.share() if shared else probe.allocate(64)
    pages = weakref.ref(probe.region.pages)
    submission = probe.start(scale(buffer))
    hanging.answers.clear()
    with within(0.3), pytest.raises(LimitError, match="wall time"):
        probe.submission_wait(submission, abi.FOREVER)
    with within(1.0):
        probe.guest.close()
    del probe
    gc.collect()
    assert (pages() is not None) == shared
    hanging.answers.set()
    with Probe(hanging) as other:
        other.run(scale(other.share()))  # a later operation
    gc.collect()
    assert pages() is None


def test_stopping_a_guest_does_not_wait_for_the_device(hanging: HangingDevice) -> None:
    with Probe(hanging) as probe:
        submission = probe.start(scale(probe.share()))
        hanging.answers.clear()
        stopper = threading.Timer(0.2, probe.guest.stop)
        stopper.start()
        with within(0.2), pytest.raises(GuestError, match="stopped"):
            probe.submission_wait(submission, abi.FOREVER)


def test_a_guest_in_a_long_kernel_is_released_after_it(reference: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU device kernels run on the guest's thread, which cannot be ended: closing gives up after a second."""
    begun, end = threading.Event(), threading.Event()

    def kernel(*_: Any) -> Any:
        return lambda: begun.set() or end.wait(60)

    monkeypatch.setitem(KERNELS, "scale", kernel)
    probe = Probe(reference)
    pages = weakref.ref(probe.region.pages)
    submission = probe.start(scale(probe.share()))
    outcome: list[object] = []

    def wait() -> None:
        try:
            probe.submission_wait(submission, abi.FOREVER)
        except GuestError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert begun.wait(60)
    for _ in range(2):
        with within(1.0):
            probe.guest.close()
    with within(0.5), Probe(reference) as other:  # does not wait for it either
        assert other.device_describe(128) == Errno.SUCCESS
    assert pages() is not None
    end.set()
    thread.join(60)
    assert "closed" in str(outcome[0])
    outcome.clear()  # its traceback refers to the guest
    Probe(reference).guest.close()
    gc.collect()
    assert pages() is None


@pytest.mark.usefixtures("impatient")
def test_other_guests_are_told_that_the_device_is_lost(hanging: HangingDevice) -> None:
    """Those who wait already, and those who come later, until the device answers again."""
    with Probe(hanging) as waiting, Probe(hanging) as later:
        give_up(hanging)
        with within(0.2):
            assert waiting.submission_wait(waiting.start(scale(waiting.share())), abi.FOREVER) == Errno.NODEV
        mine = later.allocate(64)
        with within(0):
            assert later.try_submit(scale(mine)) == Errno.NODEV
        hanging.answers.set()
        later.run(scale(mine))


@pytest.mark.usefixtures("impatient")
def test_work_that_somebody_waits_for_is_not_a_lost_device(hanging: HangingDevice) -> None:
    with Probe(hanging) as one, Probe(hanging) as two:
        first = one.start(scale(one.allocate(64)))
        hanging.answers.clear()
        second = two.start(scale(two.allocate(64)))
        assert two.submission_wait(second, int(0.6e9)) == Errno.TIMEDOUT
        hanging.answers.set()
        assert two.submission_wait(second, abi.FOREVER) == Errno.SUCCESS
        assert one.submission_wait(first, abi.FOREVER) == Errno.SUCCESS


def test_time_behind_abandoned_work_is_not_charged(hanging: HangingDevice) -> None:
    with Probe(hanging, limits=Limits(device_seconds=0.1, wall_seconds=0.6)) as other:
        give_up(hanging)
        submission = other.start(scale(other.allocate(64)))
        with pytest.raises(LimitError, match="wall time"):
            other.submission_wait(submission, abi.FOREVER)


# ---- Models


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf")


@pytest.mark.usefixtures("impatient")
def test_a_model_on_a_lost_device(hanging: HangingDevice, tiny: Path) -> None:
    """A forward pass that is given up leaves its session as it was; its pages are not given to others meanwhile."""
    with load_model(tiny, hanging) as model, model.session() as mine:
        mine.forward([1, 2, 3], None)
        limits = Limits(wall_seconds=0.3)
        with Probe(hanging, models={"tiny": model}, limits=limits) as probe:
            probe.put(128, b"tiny")
            assert probe.model_open(128, 4, probe.OUT) == Errno.SUCCESS
            assert probe.session_open(probe.u32(), probe.OUT) == Errno.SUCCESS
            session = probe.u32()
            probe.put(PAGE, np.ones(40, np.uint32))
            free = model.cache.free
            hanging.answers.clear()
            with within(0.3), pytest.raises(LimitError):
                probe.session_forward(session, PAGE, 40, 0)
        assert model.cache.free == free - 2
        with within(0.2), pytest.raises(DeviceLostError, match=r"has not answered for .* open it again"):
            mine.forward([4], None)
        assert mine.length == 3
        hanging.answers.set()
        mine.forward([4], None)
        assert model.cache.free == free
        with model.session() as fresh:
            fresh.forward([1, 2, 3], None)
            fresh.forward([4], None)
            assert fresh.save() == mine.save()


def test_closing_a_model_and_its_device(hanging: HangingDevice, tiny: Path) -> None:
    model = load_model(tiny, hanging)
    session = model.session()
    steps = session.steps([1], None)
    hanging.answers.clear()
    while next(steps) is None:
        pass
    with within(2.0):
        steps.close()
        model.close()
        hanging.close()


# ---- Devices


def test_closing_a_device_keeps_what_it_still_uses(hanging: HangingDevice) -> None:
    """Until it has ended and another device is opened, whoever forgets about it."""
    region = Region(PAGE, PAGE)
    pages = weakref.ref(region.pages)
    x = Tensor(hanging.wrap(region.aperture(0, PAGE)), 0, DType.F32, (4,))
    commands = hanging.record()
    add(Recorder(hanging.info, commands), x, x, Tensor(x.buffer, 64, DType.F32, (4,)))
    commands.finish()
    hanging.answers.clear()
    hanging.submit([commands])
    with within(1.0):
        hanging.close()
    del region, x, commands
    gc.collect()
    assert pages() is not None
    hanging.answers.set()
    HangingDevice().close()
    gc.collect()
    assert pages() is None


def zeros(device: Device, *shape: int) -> Tensor:
    return Tensor(device.allocate(4 * math.prod(shape)), 0, DType.F32, shape)


def long_work(device: Device, seconds: float) -> Any:
    """A submission that takes about ``seconds`` on the device, or more if it is busy."""
    a, out = zeros(device, 256, 256), zeros(device, 256, 256)

    def recorded(count: int) -> Any:
        commands = device.record()
        for _ in range(count):
            matmul(Recorder(device.info, commands), a, a, out)
        commands.finish()
        return commands

    def once() -> float:
        submission = device.submit([recorded(1)])
        submission.wait(60)
        return submission.seconds

    shortest = min(once() for _ in range(8))  # the others had to wait for a busy processor
    return device.submit([recorded(max(1, int(seconds / max(shortest, 1e-5))))])


@pytest.mark.vulkan
def test_a_long_kernel_on_a_real_driver(vulkan: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing gives up after a second. The same device can be opened again meanwhile, and works."""
    monkeypatch.setattr(abandoned, "PATIENCE", 0.2)
    own = open_device(vulkan.info.spec)
    submission = long_work(own, 5.0)
    with pytest.raises(DeviceTimeoutError):
        submission.wait(0.1)
    with within(2.0):
        own.close()
    assert submission.pending
    again = open_device(vulkan.info.spec)
    commands = again.record()
    add(Recorder(again.info, commands), zeros(again, 4), zeros(again, 4), out := zeros(again, 4))
    commands.finish()
    again.submit([commands]).wait(60)
    result = np.ones(16, np.uint8)
    again.read(out.buffer, 0, result)
    assert not result.any()
    with within(2.0):
        again.close()
    submission.wait(120)  # nothing that it uses is gone
    assert submission.seconds > 1.0


@pytest.mark.slow
@pytest.mark.vulkan
def test_a_process_ends_while_a_kernel_runs(vulkan: Device) -> None:
    if "llvmpipe" not in vulkan.info.name:
        pytest.skip("the driver of a GPU may keep a process until the GPU has finished")
    script = """
        from tests.security.test_lost_device import long_work
        from wasmetal.device import open_device
        device = open_device("vulkan")
        submission = long_work(device, 30)
        print("at work", flush=True)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        with within(2.0):
            assert process.wait(60) == 0


# ---- The command line

MAIN = """
    import sys
    from tests.security.hanging import HangingDevice
    from wasmetal.host import grants
    from wasmetal.cli.app import main
    device = HangingDevice()
    device.answers.clear()
    grants.open_device = lambda spec: device
    sys.argv = ["wasmetal", "run", *sys.argv[1:]]
    main()
"""


OPERANDS = [4096 + abi.COMMAND.fields["t"][1] + i * abi.TENSOR.itemsize for i in range(2)]
WAITS = f"""
(module
  (import "wasmetal_gpu" "buffer_create_device" (func $create (param i64 i32 i32) (result i32)))
  (import "wasmetal_gpu" "commands_submit" (func $submit (param i32 i32 i32) (result i32)))
  (import "wasmetal_gpu" "submission_wait" (func $wait (param i32 i64) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\\20\\00\\00\\00\\08\\00\\00\\00")
  (data (i32.const 32) "waiting\\n")
  (data (i32.const 4096) "{"".join(f"{chr(92)}{byte:02x}" for byte in scale(0).tobytes())}")
  (func (export "_start")
    (drop (call $create (i64.const 64) (i32.const 3) (i32.const 4)))
    {"".join(f"(i32.store (i32.const {at}) (i32.load (i32.const 4)))" for at in OPERANDS)}
    (drop (call $submit (i32.const 4096) (i32.const {abi.COMMAND.itemsize}) (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))
    (drop (call $wait (i32.load (i32.const 8)) (i64.const -1)))))
"""


def run_on_hanging(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """``wasmetal run`` of a guest that says "waiting" and waits for a device that never answers."""
    guest = tmp_path / "waits.wat"
    guest.write_text(WAITS)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(MAIN), *options, str(guest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_the_time_limit_of_a_run(tmp_path: Path) -> None:
    with run_on_hanging(tmp_path, "--timeout", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        with within(1.0 + 2.0):
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (2, "wasmetal: limit reached: 1 seconds of wall time\n")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_run(tmp_path: Path) -> None:
    with run_on_hanging(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        with within(2.0):
            assert process.wait(60) == 130
