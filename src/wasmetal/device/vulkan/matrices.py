"""Cooperative matrices: whether a GPU has those that the kernels use, and which GEMMs they can compute."""

from __future__ import annotations

from typing import Any

from wasmetal.device.gemm import variant
from wasmetal.device.vulkan.api import NULL, check, ffi, lib
from wasmetal.device.vulkan.instance import Instance
from wasmetal.kernels.catalog import Kernel

SUBGROUP = 32
"""Threads of a subgroup, as the kernels have it (``matrices.slang``)."""
_SIDE = 16
"""Rows and columns of a matrix."""
_DEPTH = 32
"""Elements of a tile along k."""
_VECTOR = 4
"""Floats of the least unit that the kernels load and store."""


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


def with_matrices(kernel: Kernel, params: bytes) -> Kernel:
    """The variant of a GEMM with cooperative matrices, if there is one that can compute it; else the kernel itself."""
    found = variant(kernel, "coopmat")
    if found is kernel:
        return kernel
    p = kernel.unpack(params)
    aligned = (p.x_offset | p.x_stride | p.out_offset | p.out_stride) % _VECTOR == 0
    return found if aligned and p.k % _DEPTH == 0 else kernel
