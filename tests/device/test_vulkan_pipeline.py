"""The capabilities and limits that kernels need of a device."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace

import pytest

from tests.device.harness import add, floats, span
from wasmetal.device import Device, MemoryKind
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, Kernel
from wasmetal.kernels.spirv import CAPABILITIES, declared_capabilities

pytestmark = pytest.mark.vulkan


def dispatch(device: Device, kernel: Kernel) -> None:
    bindings = [span(device.allocate(64), 0, 4)] * len(kernel.access)
    device.record().dispatch(kernel, bindings, bytes(4 * len(kernel.params)), (1, 1, 1))


def test_capabilities_of_a_module() -> None:
    header = struct.pack("<5I", 0x07230203, 0x00010500, 0, 8, 0)
    module = header + struct.pack("<4I", 2 << 16 | 17, 1, 2 << 16 | 17, 9) + struct.pack("<3I", 3 << 16 | 14, 0, 1)
    assert declared_capabilities(module) == {"Shader", "Float16"}
    assert declared_capabilities(header) == frozenset()


@pytest.mark.parametrize("kernel", [kernel for kernel in CATALOG.values() if "spirv" in kernel.targets])
def test_every_capability_of_the_kernels_is_one_that_is_asked_for(kernel: Kernel) -> None:
    declared = declared_capabilities(kernel.code("spirv"))
    assert "Shader" in declared
    assert declared <= set(CAPABILITIES.values())


def test_a_kernel_that_needs_more_than_there_is(own_vulkan: Device) -> None:
    physical = own_vulkan.backend.logical.physical
    physical.capabilities = frozenset()
    buffer = own_vulkan.allocate(64)
    with pytest.raises(DeviceError, match=r"kernel add needs SPIR-V Shader; .* lacks it"):
        add(own_vulkan.record(), *[span(buffer, 0, 4)] * 3)


def test_a_kernel_that_was_not_compiled(own_vulkan: Device) -> None:
    kernel = replace(CATALOG["add"], name="never_written")
    with pytest.raises(DeviceError, match="kernel never_written was not compiled to spirv"):
        dispatch(own_vulkan, kernel)


def test_a_pipeline_is_made_once(own_vulkan: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    code = Kernel.code
    monkeypatch.setattr(Kernel, "code", lambda self, target: (read.append(self.name), code(self, target))[1])
    buffer = own_vulkan.allocate(64)
    for _ in range(3):
        add(own_vulkan.record(), *[span(buffer, 0, 4)] * 3)
    assert read == ["add"]


def test_the_subgroup_size_is_pinned_where_there_is_a_choice(own_vulkan: Device) -> None:
    physical = own_vulkan.backend.logical.physical
    if not physical.has("subgroupSizeControl"):
        pytest.skip("this device has one subgroup size")
    physical.several_subgroup_sizes = True
    buffer = own_vulkan.allocate(4 * 64, MemoryKind.SHARED)
    floats(buffer)[:] = 1
    commands = own_vulkan.record()
    add(commands, span(buffer, 0, 16), span(buffer, 16, 16), span(buffer, 32, 16))
    commands.finish()
    own_vulkan.submit([commands]).wait()
    assert floats(buffer)[32:48].tolist() == [2] * 16
    physical.max_subgroups = 1
    with pytest.raises(DeviceError, match="kernel scale has groups of 128 threads"):
        dispatch(own_vulkan, CATALOG["scale"])


def test_info_matches_the_driver(vulkan: Device) -> None:
    """Against ``vulkaninfo``, if it is installed."""
    if not shutil.which("vulkaninfo"):
        pytest.skip("vulkaninfo is not installed")
    said = subprocess.run(["vulkaninfo"], capture_output=True, text=True, check=False, timeout=60).stdout
    words = {line.split("=")[0].strip(): line.split("=")[1].strip() for line in said.splitlines() if "=" in line}
    if said.count("deviceName ") > 1:
        pytest.skip("vulkaninfo tells of several devices")
    info = vulkan.info
    assert words["deviceName"] == info.name
    assert words["driverInfo"] in info.driver
    assert int(words["maxStorageBufferRange"]) == info.max_binding_bytes
    assert int(words["minStorageBufferOffsetAlignment"], 16) == info.offset_alignment
    assert int(words["subgroupSize"]) == info.subgroup_size
    assert info.page_alignment % int(words["minImportedHostPointerAlignment"], 16) == 0
