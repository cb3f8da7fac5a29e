"""Cooperative matrices: whether a GPU has those that the kernels use, and which GEMMs they can compute."""

from __future__ import annotations

from typing import Any

from wasmetal.device.gemm import variant
from wasmetal.device.vulkan.api import NULL, check, ffi, lib
from wasmetal.device.vulkan.instance import Instance
from wasmetal.kernels.catalog import COOPMAT_TILES, Kernel

SUBGROUP = 32
"""Threads of a subgroup, as the kernels have it (``matrices.slang``)."""
_SIDE = 16
"""Rows and columns of a matrix."""
_DEPTH = 32
"""Elements of a tile along k."""
_MANY = 256
"""Groups that occupy a large GPU; below, smaller tiles make more of them. Of an H200, which has 132 multiprocessors."""
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
    small, large = (variant(kernel, f"coopmat{tile}") for tile in COOPMAT_TILES)
    if small is kernel:
        return kernel
    p = kernel.unpack(params)
    aligned = (p.x_offset | p.x_stride | p.weight_offset | p.out_offset | p.out_stride) % _VECTOR == 0
    if not aligned or p.k % _DEPTH:
        return kernel
    groups = -(-p.rows // COOPMAT_TILES[1]) * -(-p.n // COOPMAT_TILES[1])
    return small if groups < _MANY else large
