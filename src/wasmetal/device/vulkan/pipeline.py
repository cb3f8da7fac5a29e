"""Compute pipelines, one for each kernel, made when it is first recorded."""

from __future__ import annotations

import math
from typing import Any

from wasmetal.device.pipelines import CacheFile, PipelineTable
from wasmetal.device.vulkan.api import NULL, enumerate_all, ffi, lib, make, struct
from wasmetal.device.vulkan.logical import LogicalDevice, Owned
from wasmetal.device.vulkan.physical import PhysicalDevice
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel
from wasmetal.kernels.spirv import declared_capabilities

_STAGE: int = lib.VK_SHADER_STAGE_COMPUTE_BIT


class Pipeline:
    """A kernel compiled for the device: storage buffers at bindings 0, 1, … of set 0, parameters as push constants."""

    def __init__(self, device: LogicalDevice, kernel: Kernel, cache: Any) -> None:
        """``cache``: a ``VkPipelineCache``. Raises DeviceError if the device cannot run the kernel."""
        spirv = _code(device.physical, kernel)
        storage = {"descriptorType": lib.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, "descriptorCount": 1, "stageFlags": _STAGE}
        count = len(kernel.buffers)
        bindings = [struct("VkDescriptorSetLayoutBinding", binding=i, **storage) for i in range(count)]
        pushed = lib.VK_DESCRIPTOR_SET_LAYOUT_CREATE_PUSH_DESCRIPTOR_BIT_KHR
        info = struct("VkDescriptorSetLayoutCreateInfo", flags=pushed, bindingCount=count, pBindings=bindings)
        set_layout = self._set_layout = device.create("DescriptorSetLayout", info)
        info = struct(
            "VkPipelineLayoutCreateInfo",
            setLayoutCount=1,
            pSetLayouts=[set_layout.handle],
            pushConstantRangeCount=1 if kernel.params else 0,
            pPushConstantRanges=struct("VkPushConstantRange", stageFlags=_STAGE, size=kernel.params_size),
        )
        self.layout = device.create("PipelineLayout", info)
        code = ffi.from_buffer("uint32_t[]", spirv)
        module = device.create("ShaderModule", struct("VkShaderModuleCreateInfo", codeSize=len(spirv), pCode=code))
        stage = struct(
            "VkPipelineShaderStageCreateInfo",
            stage=_STAGE,
            module=module.handle,
            pName=ffi.new("char[]", b"main"),
            **_subgroup_size(device.physical, kernel),
        )
        info = struct("VkComputePipelineCreateInfo", stage=stage[0], layout=self.layout.handle)
        made = make("vkCreateComputePipelines", "VkPipeline", device.handle, cache, 1, info, NULL)
        self.pipeline = Owned(device, made, "vkDestroyPipeline")


def _code(physical: PhysicalDevice, kernel: Kernel) -> bytes:
    """The kernel's SPIR-V. Raises DeviceError if there is none, or it needs what the device lacks."""
    try:
        spirv = kernel.code("spirv")
    except FileNotFoundError as error:
        raise DeviceError(f"kernel {kernel.name} was not compiled to SPIR-V: generate the kernels") from error
    if missing := declared_capabilities(spirv) - physical.capabilities:
        raise DeviceError(f"kernel {kernel.name} needs SPIR-V {', '.join(sorted(missing))}; {physical.name} lacks it")
    return spirv


def _subgroup_size(physical: PhysicalDevice, kernel: Kernel) -> dict[str, Any]:
    """What pins subgroups to the size that DeviceInfo tells, all of them full, if a driver could choose another."""
    if not physical.several_subgroup_sizes:
        return {}
    size, threads = physical.info.subgroup_size, math.prod(kernel.threads)
    limit = size * physical.max_subgroups
    if threads > limit:
        raise DeviceError(f"kernel {kernel.name} has groups of {threads} threads; {physical.name} takes {limit}")
    full = kernel.threads[0] % size == 0 and physical.has("computeFullSubgroups")
    return {
        "pNext": struct("VkPipelineShaderStageRequiredSubgroupSizeCreateInfo", requiredSubgroupSize=size),
        "flags": lib.VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT if full else 0,
    }


class Pipelines:
    """The device's compiled kernels, and the driver's cache of them, which begins with what an earlier process left.

    Its file is named by vendor, device, driver and the driver's own cache identifier, so that no driver is given the
    data of another.
    """

    def __init__(self, device: LogicalDevice) -> None:
        self._device = device
        self._file = CacheFile(f"vulkan-{device.physical.cache_key}.bin")
        self._saved = self._file.read()
        data = ffi.from_buffer(self._saved) if self._saved else NULL
        info = struct("VkPipelineCacheCreateInfo", initialDataSize=len(self._saved), pInitialData=data)
        cache = self._cache = device.create("PipelineCache", info)
        self.get = PipelineTable(lambda kernel: Pipeline(device, kernel, cache.handle)).get

    def save(self) -> None:
        """Write the file anew if there is something new to write."""
        handles = self._device.handle, self._cache.handle
        data = bytes(ffi.buffer(enumerate_all("vkGetPipelineCacheData", "char", *handles, count_type="size_t")))
        if data != self._saved:
            self._file.replace(lambda path: path.write_bytes(data))
