"""Submissions on an emulated GPU: order, waiting, failures, and what is kept alive until they have ended."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from tests.device.harness import floats, recorded, span
from tests.metal.devices import environment_for
from tests.metal.standin import Gpu, RuleError, installed
from tests.metal.standin.bridge import table
from wasmetal.device import Device, MemoryKind, list_devices, open_device
from wasmetal.errors import (
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    DeviceTimeoutError,
    OutOfDeviceMemoryError,
)
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

pytestmark = pytest.mark.usefixtures("tried")


def doubling(device: Device):
    """A buffer of ones, and a list that doubles them."""
    buffer = device.allocate(64, MemoryKind.SHARED)
    floats(buffer)[:] = 1
    return buffer, recorded(device, (span(buffer, 0, 16), span(buffer, 0, 16), span(buffer, 0, 16)))


def test_submissions_run_one_after_another(emulated: Device) -> None:
    """More submissions than a queue takes, all on the same bytes; only the last is waited for."""
    buffer, _ = doubling(emulated)
    whole = span(buffer, 0, 16)
    submissions = [emulated.submit([recorded(emulated, (whole, whole, whole))]) for _ in range(100)]
    submissions[-1].wait()
    assert floats(buffer)[0] == 2.0**100
    assert [submission.seconds > 0 for submission in submissions] == [True] * 100
    assert emulated.counters.device_seconds == pytest.approx(sum(s.seconds for s in submissions))


def test_a_wait_that_is_too_short(gpu: Gpu, emulated: Device) -> None:
    buffer, double = doubling(emulated)
    submission = emulated.submit([double])
    gpu.hangs = True
    started = time.monotonic()
    with pytest.raises(DeviceTimeoutError, match=r"0\.05 seconds"):
        submission.wait(0.05)
    assert time.monotonic() - started >= 0.05
    assert floats(buffer)[0] == 1
    gpu.hangs = False
    submission.wait()
    assert submission.seconds > 0
    assert floats(buffer)[0] == 2


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("OutOfMemory", OutOfDeviceMemoryError),
        ("DeviceRemoved", DeviceLostError),
        ("AccessRevoked", DeviceLostError),
        ("Timeout", DeviceError),
        ("PageFault", DeviceError),
    ],
)
def test_a_submission_that_fails(gpu: Gpu, emulated: Device, code: str, kind: type[DeviceError]) -> None:
    buffer, double = doubling(emulated)
    number = gpu.command_error = table().constants[f"MTLCommandBufferError{code}"]
    first = emulated.submit([double])
    with pytest.raises(kind, match=f"Metal error {number}: told to fail"):
        first.wait()
    gpu.command_error = 0
    if kind is DeviceLostError:
        with pytest.raises(DeviceLostError):
            emulated.submit([double])
    else:
        emulated.submit([double]).wait()
        assert floats(buffer)[0] == 2
    with pytest.raises(kind):
        first.wait()  # the error is raised again
    assert emulated.counters.submits == (1 if kind is DeviceLostError else 2)


def test_those_behind_a_failed_submission_run(gpu: Gpu, emulated: Device) -> None:
    """A failed submission never signals the event that later ones wait for, so the host must."""
    buffer, double = doubling(emulated)
    gpu.command_error = table().constants["MTLCommandBufferErrorPageFault"]
    failed = emulated.submit([double])
    whole = span(buffer, 0, 16)
    behind = emulated.submit([recorded(emulated, (whole, whole, whole))])
    gpu.hangs = True
    with pytest.raises(DeviceTimeoutError):
        behind.wait(0.01)
    gpu.hangs = False
    with pytest.raises(DeviceError):
        failed.wait()
    gpu.command_error = 0
    behind.wait()
    assert floats(buffer)[0] == 2


def test_a_lost_device_closes(gpu: Gpu, emulated: Device) -> None:
    _, double = doubling(emulated)
    gpu.command_error = table().constants["MTLCommandBufferErrorDeviceRemoved"]
    emulated.submit([double])
    emulated.close()
    emulated.close()


def test_work_under_way_keeps_what_it_uses(gpu: Gpu, emulated: Device) -> None:
    """Buffers, pages and lists to which no other reference is left; the memory has grown meanwhile."""
    region = Region(64 * page_size(), page_size())
    pages = weakref.ref(region.pages)
    out = emulated.allocate(64, MemoryKind.SHARED)
    old = emulated.wrap(region.aperture(0, page_size()))
    floats(old)[:16] = np.arange(16)
    ran = recorded(emulated, (span(old, 0, 16), span(old, 0, 16), span(out, 0, 16)))
    submission = emulated.submit([ran])
    region.grow(64 * page_size())
    grown = emulated.wrap(region.aperture(0, region.size))
    for gone in (ran, old, grown, region):
        gone.close()
    del ran, old, grown, region, gone
    gc.collect()
    assert pages() is not None
    submission.wait()
    assert np.array_equal(floats(out), 2 * np.arange(16))
    del submission
    gc.collect()
    assert pages() is None


def test_a_change_in_flight_is_noticed(emulated: Device) -> None:
    """The stand-in notices when the host breaks the rule."""
    buffer, double = doubling(emulated)
    submission = emulated.submit([double])
    floats(buffer)[3] = 7
    with pytest.raises(RuleError, match="changed by the host"):
        submission.wait()


def test_a_list_that_fails_half_way_leaves_the_queue_usable(emulated: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, double = doubling(emulated)

    def interrupted(encoder: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(double.recording, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            emulated.submit([double])
    assert emulated.counters.submits == 0
    emulated.submit([double]).wait()
    assert floats(buffer)[0] == 2


def test_systems_and_gpus_that_will_not_do(open_on: Callable[[Gpu], Device]) -> None:
    with pytest.raises(DeviceError, match="macOS 15"):
        open_on(Gpu(macos=14))
    with pytest.raises(DeviceError, match="no command queue"):
        open_on(Gpu(has_queues=False))


def test_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several GPUs by index; only GPUs that are too old; and, without the stand-in, none."""
    from tests.metal.standin import installed
    from wasmetal.device import open_device

    with installed(Gpu(name="first"), Gpu(name="second")):
        assert [info.spec for info in list_devices() if info.backend == "metal"] == ["metal:0", "metal:1"]
        with open_device("metal:1") as device:
            assert (device.info.name, device.info.index) == ("second", 1)
        with pytest.raises(DeviceNotFoundError, match="metal:2"):
            open_device("metal:2")
        with open_device("auto") as device:
            assert device.info.spec == "metal:0"
    with installed(Gpu(macos=14)), pytest.raises(DeviceNotFoundError, match="macOS 15"):
        open_device("metal")
    with pytest.raises(DeviceNotFoundError, match="part of macOS"):
        open_device("metal")


def test_without_residency_sets(open_on: Callable[[Gpu], Device]) -> None:
    device = open_on(Gpu(has_residency=False))
    assert "residency set" not in device.info.features
    buffer, double = doubling(device)
    device.submit([double]).wait()
    assert floats(buffer)[0] == 2


def test_nothing_of_macos_is_imported_unasked() -> None:
    """Even if it could be, as on a Mac: only listing devices loads the framework."""
    script = (
        "import sys, wasmetal, wasmetal.cli, wasmetal.models, wasmetal.doctor\n"
        "print({'Metal', 'Foundation', 'objc', 'mlx'} & set(sys.modules))\n"
        "wasmetal.device.list_devices()\n"
        "print('Metal' in sys.modules)\n"
    )
    environment = os.environ | environment_for("metal")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nTrue\n"


def test_work_that_everybody_has_abandoned(gpu: Gpu) -> None:
    """A device dropped with work in flight: all that the work uses lives until it has ended, and no longer."""
    with installed(gpu):
        device = open_device("metal")
        buffer, double = doubling(device)
        values = floats(buffer)
        device.submit([double])
        del device, buffer, double
        gc.collect()
        assert values[0] == 1
        gpu.progress()
        assert values[0] == 2
        assert gpu.live
        open_device("metal").close()
        gc.collect()
    assert not gpu.live
