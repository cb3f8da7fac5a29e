"""Compute pipelines, each created when its kernel is first recorded."""

from __future__ import annotations

from typing import Any

from wasmetal.device.pipelines import CacheFile, Pipelines, check_threads, compiled_code
from wasmetal.device.vulkan.api import NULL, enumerate_all, ffi, lib, make, struct
from wasmetal.device.vulkan.logical import LogicalDevice, Owned
from wasmetal.device.vulkan.physical import PhysicalDevice
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel
from wasmetal.kernels.spirv import declared_capabilities

_STAGE: int = lib.VK_SHADER_STAGE_COMPUTE_BIT


class Pipeline:
    """A compiled kernel: its buffers are bindings 0, 1, … of descriptor set 0, its parameters push constants."""

    def __init__(self, device: LogicalDevice, kernel: Kernel, cache: Any) -> None:
        """``cache``: a ``VkPipelineCache``. Raises DeviceError if the device cannot run the kernel."""
        spirv = _code(device.physical, kernel)
        storage = {"descriptorType": lib.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, "descriptorCount": 1, "stageFlags": _STAGE}
        count = len(kernel.buffers)
        bindings = [struct("VkDescriptorSetLayoutBinding", binding=i, **storage) for i in range(count)]
        pushed = lib.VK_DESCRIPTOR_SET_LAYOUT_CREATE_PUSH_DESCRIPTOR_BIT_KHR
        info = struct("VkDescriptorSetLayoutCreateInfo", flags=pushed, bindingCount=count, pBindings=bindings)
        set_layout = self._set_layout = device.create("DescriptorSetLayout", info)
        constants = struct("VkPushConstantRange", stageFlags=_STAGE, size=kernel.params_size)
        ranges = {"pushConstantRangeCount": 1, "pPushConstantRanges": constants}
        info = struct("VkPipelineLayoutCreateInfo", setLayoutCount=1, pSetLayouts=[set_layout.handle], **ranges)
        self.layout = device.create("PipelineLayout", info)
        code = ffi.from_buffer("uint32_t[]", spirv)
        module = device.create("ShaderModule", struct("VkShaderModuleCreateInfo", codeSize=len(spirv), pCode=code))
        entry = {"stage": _STAGE, "module": module.handle, "pName": ffi.new("char[]", b"main")}
        stage = struct("VkPipelineShaderStageCreateInfo", **entry, **_subgroup_size(device.physical, kernel))
        info = struct("VkComputePipelineCreateInfo", stage=stage[0], layout=self.layout.handle)
        made = make("vkCreateComputePipelines", "VkPipeline", device.handle, cache, 1, info, NULL)
        self.pipeline = Owned(device, made, "vkDestroyPipeline")


def _code(physical: PhysicalDevice, kernel: Kernel) -> bytes:
    """The kernel's SPIR-V. Raises DeviceError if it was not compiled, or needs a capability that the device lacks."""
    spirv = compiled_code(kernel, "spirv")
    if missing := declared_capabilities(spirv) - physical.capabilities:
        raise DeviceError(f"kernel {kernel.name} needs SPIR-V {', '.join(sorted(missing))}; {physical.name} lacks it")
    return spirv


def _subgroup_size(physical: PhysicalDevice, kernel: Kernel) -> dict[str, Any]:
    """Stage fields that require ``DeviceInfo.subgroup_size`` and full subgroups, if the driver could choose others."""
    if not physical.several_subgroup_sizes:
        return {}
    size = physical.info.subgroup_size
    check_threads(kernel, size * physical.max_subgroups, physical.name)
    full = kernel.threads[0] % size == 0 and physical.has("computeFullSubgroups")
    return {
        "pNext": struct("VkPipelineShaderStageRequiredSubgroupSizeCreateInfo", requiredSubgroupSize=size),
        "flags": lib.VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT if full else 0,
    }


class VulkanPipelines(Pipelines[Pipeline]):
    """Pipelines in a ``VkPipelineCache``, which is kept in a file between processes.

    The file name contains the vendor, the device, the driver's version and its cache identifier, so that no driver
    reads another's data.
    """

    def __init__(self, device: LogicalDevice) -> None:
        super().__init__()
        self._device = device
        self._file = CacheFile(f"vulkan-{device.physical.cache_key}.bin")
        saved = self._file.read()
        data = ffi.from_buffer(saved) if saved else NULL
        info = struct("VkPipelineCacheCreateInfo", initialDataSize=len(saved), pInitialData=data)
        self._cache = device.create("PipelineCache", info)

    def compile(self, kernel: Kernel) -> Pipeline:
        """Create the kernel's pipeline. Raises DeviceError if the device cannot run it."""
        return Pipeline(self._device, kernel, self._cache.handle)

    def save(self) -> None:
        """Write the cache file if its content has changed."""
        handles = self._device.handle, self._cache.handle
        data = enumerate_all("vkGetPipelineCacheData", "char", *handles, count_type="size_t")
        self._file.write(bytes(ffi.buffer(data)))
