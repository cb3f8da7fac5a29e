"""The validation layer reports real faults, and its messages reach the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wasmetal.device import Device

pytestmark = pytest.mark.vulkan

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from tests import vulkan_validation as validation
from tests.device.harness import recorded, span
from wasmetal.device import open_device
from wasmetal.device.vulkan import recording
validation.watch()
{fault}
with open_device("vulkan") as device:
    buffer = device.allocate(1024)
    a, b = span(buffer, 0, 64), span(buffer, 64, 64)
    device.submit([recorded(device, (a, a, b), (b, b, a))]).wait()
print(len(validation.messages), *(message.split("|")[0] for message in validation.messages))
"""


def run(fault: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(fault=fault, root=str(Path(__file__).parents[2]))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture(autouse=True)
def _layer(vulkan: Device) -> None:
    from tests import vulkan_validation as validation

    if not validation.present():
        pytest.skip("the validation layer is not installed")


def test_silent_where_all_is_well() -> None:
    assert run("").strip() == "0"


def test_a_missing_barrier_is_heard() -> None:
    assert "SYNC-HAZARD-READ-AFTER-WRITE" in run("recording.Hazards.needs_barrier = lambda self, touches: False")


def test_a_wrong_call_is_heard() -> None:
    assert "VUID-VkBufferCreateInfo-size-00912" in run(
        "from wasmetal.device.vulkan import memory; real = memory.struct; memory.struct = lambda name, **fields: "
        "real(name, **(fields | {'size': 0} if name == 'VkBufferCreateInfo' else fields))"
    )


def test_an_object_left_behind_is_heard() -> None:
    assert "VUID-vkDestroyDevice-device" in run(
        "from wasmetal.device.vulkan import logical; logical._destroy_owned = lambda *a: None"
    )
