"""Whether a GPU has the cooperative matrices that the kernels use."""

from __future__ import annotations

from typing import Any

from wasmetal.device.vulkan.api import NULL, check, ffi, lib
from wasmetal.device.vulkan.instance import Instance

_SIDE = 16
"""Rows and columns of a matrix."""


def supported(instance: Instance, physical_device: Any) -> bool:
    """Whether the GPU multiplies such matrices of float16 and adds the products to float32."""
    name = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
    function = ffi.cast(f"PFN_{name}", lib.vkGetInstanceProcAddr(instance.handle, name.encode()))
    count = ffi.new("uint32_t *")
    check(function(physical_device, count, NULL), name)
    stype = lib.VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR
    kinds = ffi.new("VkCooperativeMatrixPropertiesKHR[]", [{"sType": stype}] * count[0])
    check(function(physical_device, count, kinds), name)
    half, single = lib.VK_COMPONENT_TYPE_FLOAT16_KHR, lib.VK_COMPONENT_TYPE_FLOAT32_KHR
    wanted = (_SIDE, _SIDE, _SIDE, half, half, single, single, lib.VK_SCOPE_SUBGROUP_KHR)
    fields = ("MSize", "NSize", "KSize", "AType", "BType", "CType", "ResultType", "scope")
    return any(tuple(getattr(kind, field) for field in fields) == wanted for kind in kinds)
