"""The ways in which Vulkan can fail, each with a one-line message."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.device.harness import add, recorded, span
from wasmetal.device import Binding, Device, abandoned, open_device
from wasmetal.errors import (
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    DeviceTimeoutError,
    OutOfDeviceMemoryError,
)

OPEN = (
    "import wasmetal.device as d, wasmetal.errors as e\ntry: d.open_device('vulkan')\nexcept e.{error} as x: print(x)"
)
Faults = Callable[[Device, str, int], None]


def run_python(code: str, **environment: str) -> str:
    """The output of a new Python process with a changed environment."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def no_loader(tmp_path: Path) -> dict[str, str]:
    """An environment in which the vulkan package finds no libvulkan, as on a machine without one, and without CUDA."""
    (tmp_path / "vulkan.py").write_text("raise OSError('Cannot find Vulkan SDK version.')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


def test_no_loader(no_loader: dict[str, str]) -> None:
    said = run_python(OPEN.format(error="DeviceNotFoundError"), **no_loader)
    assert said == "no Vulkan loader (libvulkan): install it (Debian: libvulkan1) and a driver"


def test_without_a_loader_there_is_the_cpu(no_loader: dict[str, str]) -> None:
    code = "import wasmetal.device as d; print([i.spec for i in d.list_devices()], d.open_device('auto').info.spec)"
    assert run_python(code, **no_loader) == "['cpu:0'] cpu:0"


@pytest.mark.vulkan
def test_no_driver(vulkan: Device) -> None:
    nowhere = {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    said = run_python(OPEN.format(error="DeviceNotFoundError"), **nowhere)
    assert said.startswith("no Vulkan driver (Debian: install mesa-vulkan-drivers)")
    code = "import wasmetal.device as d; print([i.spec for i in d.list_devices()], d.open_device().info.spec)"
    nowhere["CUDA_VISIBLE_DEVICES"] = ""
    assert run_python(code, **nowhere) == "['cpu:0'] cpu:0"


@pytest.mark.vulkan
def test_no_device_of_that_index(vulkan: Device) -> None:
    with pytest.raises(DeviceNotFoundError, match=r"no device vulkan:99: there are \d+"):
        open_device("vulkan:99")


@pytest.mark.vulkan
class TestUnusableDevices:
    """The message for a device that lacks a requirement; each test removes one."""

    def test_a_missing_extension(self, vulkan: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        from wasmetal.device.vulkan import physical

        monkeypatch.setitem(physical.EXTENSIONS, "VK_EXT_of_tomorrow", "time cannot be told")
        reason = "its driver lacks VK_EXT_of_tomorrow: time cannot be told"
        with pytest.raises(DeviceError, match=r"vulkan:0 \(.*\) cannot be used: " + reason):
            open_device("vulkan:0")
        with pytest.raises(DeviceNotFoundError, match="no usable vulkan device: .*: " + reason):
            open_device("vulkan")

    def test_an_old_driver(self, vulkan: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        from wasmetal.device.vulkan import physical

        monkeypatch.setattr(physical, "API_VERSION", 9 << 22)
        with pytest.raises(DeviceError, match=r"its driver supports Vulkan 1\.\d+\.\d+; 1.2 or later is needed"):
            open_device("vulkan:0")

    def test_no_compute_queue(self, vulkan: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        from wasmetal.device.vulkan import physical

        monkeypatch.setattr(physical, "_compute_queue", lambda handle: (None, 0))
        with pytest.raises(DeviceError, match="it has no compute queue with timestamps"):
            open_device("vulkan:0")

    def test_an_old_loader(self, vulkan: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        from wasmetal.device.vulkan import instance

        monkeypatch.setattr(instance, "API_VERSION", 9 << 22)
        with pytest.raises(DeviceNotFoundError, match=r"the Vulkan loader supports 1\.\d+\.\d+; install 1.2 or later"):
            open_device("vulkan")


@pytest.mark.vulkan
class TestFaults:
    """Driver results that cannot be provoked, injected."""

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (-2, "the device is out of memory"),
            (-1, "the Vulkan driver is out of host memory"),
            (-10, "the Vulkan driver allows no more allocations"),
        ],
    )
    def test_out_of_memory(self, own_vulkan: Device, faults: Faults, result: int, message: str) -> None:
        faults(own_vulkan, "vkAllocateMemory", result)
        with pytest.raises(OutOfDeviceMemoryError, match=message):
            own_vulkan.allocate(64)

    def test_a_result_that_nobody_knows(self, own_vulkan: Device, faults: Faults) -> None:
        faults(own_vulkan, "vkAllocateMemory", -12345)
        with pytest.raises(DeviceError, match=r"the Vulkan driver failed \(vkAllocateMemory: VkResult -12345\)"):
            own_vulkan.allocate(64)

    def test_lost_on_submission(self, own_vulkan: Device, faults: Faults) -> None:
        ran = recorded(own_vulkan)
        faults(own_vulkan, "vkQueueSubmit", -4)
        with pytest.raises(DeviceLostError, match="the device was lost"):
            own_vulkan.submit([ran])
        with pytest.raises(DeviceLostError, match="the device was lost: open it again"):
            own_vulkan.submit([ran])
        ran.close()
        own_vulkan.close()  # neither waits forever nor raises

    def test_lost_while_waiting(self, own_vulkan: Device, faults: Faults) -> None:
        ran = recorded(own_vulkan)
        submission = own_vulkan.submit([ran])
        assert own_vulkan.backend.logical.wait_for(1, 10)  # the real device is idle
        own_vulkan.backend.logical._completed = 0
        faults(own_vulkan, "vkWaitSemaphores", -4)
        with pytest.raises(DeviceLostError, match="vkWaitSemaphores: VK_ERROR_DEVICE_LOST"):
            submission.wait()
        with pytest.raises(DeviceLostError):
            submission.wait()
        own_vulkan.close()


@pytest.mark.vulkan
def test_a_binding_longer_than_the_device_takes(own_vulkan: Device) -> None:
    limit = own_vulkan.info.max_binding_bytes
    good = span(own_vulkan.allocate(1024), 0, 4)
    try:
        large = own_vulkan.allocate(limit + 4)
    except OutOfDeviceMemoryError:
        return  # No buffer of this device is longer than what it can bind.
    with pytest.raises(DeviceError, match=f"allows at most {limit}"):
        add(own_vulkan.record(), good, good, Binding(large, 0, limit + 4))


@pytest.mark.vulkan
class TestPendingWork:
    """A submission in flight: some hundred dependent additions, not waited for."""

    @pytest.fixture
    def long_list(self, own_vulkan: Device):
        count = 1 << 19
        whole = span(own_vulkan.allocate(4 * count), 0, count)
        return recorded(own_vulkan, *[(whole, whole, whole)] * 400)

    def test_timeout(self, own_vulkan: Device, long_list) -> None:
        submission = own_vulkan.submit([long_list])
        with pytest.raises(DeviceTimeoutError, match=r"did not finish within 0\.0001 seconds; it is still running"):
            submission.wait(0.0001)
        submission.wait()
        assert submission.seconds > 0.0001

    def test_a_time_that_nobody_asked_for_is_counted(self, own_vulkan: Device, long_list) -> None:
        first = own_vulkan.submit([long_list])
        first.work.wait(60)
        second = own_vulkan.submit([long_list])  # overwrites the timestamps of the first
        assert own_vulkan.counters.device_seconds == first.seconds > 0
        second.wait()
        assert own_vulkan.counters.device_seconds == pytest.approx(first.seconds + second.seconds)

    @pytest.mark.parametrize("close", ["list", "device", "nothing"])
    def test_closed_while_at_work(self, own_vulkan: Device, long_list, close: str) -> None:
        """Whatever is closed or dropped lives until the work has ended; the validation layer would report it else."""
        submission = own_vulkan.submit([long_list])
        if close == "list":
            long_list.close()
        elif close == "device":
            own_vulkan.close()
            submission.wait(60)
            assert submission.seconds > 0
        del submission, long_list

    def test_dropped_while_at_work(self, vulkan: Device) -> None:
        """Nobody waits or closes anything: all of it lives until the work has ended, and no longer."""
        device = open_device(vulkan.info.spec)
        count = 1 << 19
        whole = span(device.allocate(4 * count), 0, count)
        device.submit([recorded(device, *[(whole, whole, whole)] * 400)])
        opened = weakref.ref(device.backend.logical)
        del device, whole
        gc.collect()
        end = time.monotonic() + 60
        while opened() is not None and time.monotonic() < end:
            abandoned.release_ended()
            gc.collect()
            time.sleep(0.02)
        assert opened() is None


@pytest.mark.vulkan
def test_an_interrupt_ends_a_copy_that_waits(own_discrete: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = own_discrete.allocate(64)
    logical = own_discrete.backend.logical
    real, interrupts = logical.wait_for, iter([KeyboardInterrupt])

    def interrupted(number: int, seconds: float) -> bool:
        if interrupt := next(interrupts, None):
            raise interrupt
        return real(number, seconds)

    monkeypatch.setattr(logical, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own_discrete.write(buffer, 0, np.ones(64, np.uint8))
    own_discrete.write(buffer, 0, np.full(64, 2, np.uint8))
    out = np.empty(64, np.uint8)
    own_discrete.read(buffer, 0, out)
    assert np.all(out == 2)
