"""A tensor's bytes as an MLX array, shared: ``pip install 'mlx>=0.32.1'``. If MLX would have to copy, that is an error.

MLX wraps host pages as the ``metal`` device does, so both see the same bytes. Neither knows which of
the other's work is in flight: wait for submissions before MLX reads, and call ``mlx.core.eval`` before kernels or
guests do. MLX operations return new arrays, which are not shared; their inputs are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmetal.errors import DeviceError
from wasmetal.kernels.dtypes import DType
from wasmetal.memory.pages import page_size
from wasmetal.ops.tensor import Tensor

_TYPES = {DType.F32: "float32", DType.F16: "float16", DType.I32: "int32"}


def as_array(tensor: Tensor) -> Any:
    """An ``mlx.core.array`` of the tensor's shape and dtype (F32, F16, I32), over the tensor's own bytes.

    The array keeps the buffer alive, as a NumPy view would. Raises DeviceError if MLX is missing or would have to copy.
    """
    try:
        import mlx.core as mx  # noqa: PLC0415
    except ImportError as error:
        raise DeviceError("MLX is not installed: pip install 'mlx>=0.32.1'") from error
    if tensor.dtype not in _TYPES or not tensor.packed:
        raise DeviceError(f"MLX cannot share a tensor {tensor.dtype.name} with row stride {tensor.row_stride}")
    view = tensor.buffer.view()
    # Whole pages, since only these can be wrapped; the tensor is a view of them.
    start = tensor.offset // page_size() * page_size()
    end = -(-(tensor.offset + tensor.nbytes) // page_size()) * page_size()
    if end > view.size:
        raise DeviceError(f"MLX shares whole pages: make the buffer of {view.size} bytes a multiple of {page_size()}")
    pages = view[start:end]
    try:
        shared = mx.asarray(pages, copy=False)
    except (AttributeError, TypeError, ValueError) as error:  # the first two before 0.32.1
        raise DeviceError(f"MLX refused to share {pages.size} bytes at {pages.ctypes.data:#x}: {error}") from error
    seen = np.frombuffer(memoryview(shared), np.uint8).ctypes.data
    if seen != pages.ctypes.data:
        raise DeviceError(f"MLX has its array at {seen:#x}, not at {pages.ctypes.data:#x}: it made a copy")
    inside = shared[tensor.offset - start : tensor.offset - start + tensor.nbytes]
    return inside.view(getattr(mx, _TYPES[tensor.dtype])).reshape(tensor.shape)
