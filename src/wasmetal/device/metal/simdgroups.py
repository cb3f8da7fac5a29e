"""Whether a GPU multiplies simdgroup matrices, and well. It is tried, since virtual GPUs say less than they can do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import Binding, Device, MemoryKind
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, NO_STEP, grid

ROWS, COLUMNS, DEPTH = 13, 70, 44
"""Of a product whose tiles all end inside a simdgroup matrix, in every direction."""


def multiply_well(device: Device) -> bool:
    """Have the device compute one product with simdgroup matrices, and compare it with NumPy's."""
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal((rows, DEPTH)).astype(np.float32) for rows in (ROWS, COLUMNS))
    try:
        product = _product(device, x, weight)
    except DeviceError:
        return False
    return bool(np.allclose(product, x.astype(np.float64) @ weight.T, rtol=0, atol=1e-4))


def _product(device: Device, x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """X weightᵀ. Raises DeviceError where the kernel cannot be built, or fails."""
    kernel = CATALOG["gemm_simdgroup_f32"]
    buffers = [device.allocate(4 * count, MemoryKind.SHARED) for count in (x.size, weight.size, ROWS * COLUMNS)]
    for buffer, values in zip(buffers, (x, weight), strict=False):
        buffer.view().view(np.float32)[:] = values.ravel()
    params = kernel.pack(
        x_offset=0,
        weight_offset=0,
        out_offset=0,
        step_offset=NO_STEP,
        rows=ROWS,
        n=COLUMNS,
        k=DEPTH,
        x_stride=DEPTH,
        out_stride=COLUMNS,
        accumulate=0,
    )
    commands = device.record()
    try:
        bindings = [Binding(buffer, 0, buffer.nbytes) for buffer in (*buffers, buffers[0])]
        commands.dispatch(kernel, bindings, params, grid(-(-ROWS // 64) * -(-COLUMNS // 64)))
        commands.finish()
        device.submit([commands]).wait()
        return buffers[2].view().view(np.float32).reshape(ROWS, COLUMNS).copy()
    finally:
        commands.close()
        for buffer in buffers:
            buffer.close()
