"""Argument checks that all devices share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wasmetal.device.backend import Grid
from wasmetal.device.base import Binding, Buffer, Bytes, DeviceInfo
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel


def check_call(
    info: DeviceInfo, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: Grid, limits: Grid
) -> None:
    """Raise DeviceError if arguments do not match the kernel, or the grid exceeds ``limits``."""
    if len(bindings) != len(kernel.access):
        raise DeviceError(f"kernel {kernel.name} takes {len(kernel.access)} buffers, not {len(bindings)}")
    if len(params) != kernel.params_size:
        raise DeviceError(f"kernel {kernel.name} takes {kernel.params_size} bytes of parameters, not {len(params)}")
    (x, y, z), (most_x, most_y, most_z) = groups, limits
    if not (1 <= x <= most_x and 1 <= y <= most_y and 1 <= z <= most_z):
        raise DeviceError(f"kernel {kernel.name}: a grid of {groups}; {info.name} allows 1 to {limits}")


def check_binding(info: DeviceInfo, binding: Binding) -> None:
    """Raise DeviceError if a binding is not within its buffer, or violates the device's alignment or size limit."""
    offset, nbytes = binding.offset, binding.nbytes
    if offset < 0 or nbytes < 1 or offset + nbytes > binding.buffer.nbytes:
        raise DeviceError(f"binding of {nbytes} bytes at {offset} is not within its buffer of {binding.buffer.nbytes}")
    if offset % info.offset_alignment:
        raise DeviceError(f"binding at {offset}: {info.name} needs a multiple of {info.offset_alignment}")
    if nbytes > info.max_binding_bytes:
        raise DeviceError(f"binding of {nbytes} bytes: {info.name} allows at most {info.max_binding_bytes}")


def check_copy(buffer: Buffer, offset: int, *data: Bytes) -> None:
    """Raise DeviceError if ``data``, one after the other, cannot be copied to or from a buffer at ``offset``."""
    nbytes = 0
    for each in data:
        if each.dtype != np.uint8 or each.ndim != 1:
            raise DeviceError(f"data to copy must be one-dimensional uint8, not {each.ndim}-dimensional {each.dtype}")
        nbytes += each.size
    if offset < 0 or offset + nbytes > buffer.nbytes:
        raise DeviceError(f"{nbytes} bytes at {offset} are not within their buffer of {buffer.nbytes}")


def check_rows(buffers: Sequence[Buffer], offset: int, *data: Bytes) -> None:
    """Raise DeviceError unless row i of each of ``data``, in order, can be copied to buffer i at ``offset``."""
    for each in data:
        if each.dtype != np.uint8 or each.ndim != 2 or len(each) != len(buffers):
            raise DeviceError(f"rows to copy must be uint8 [{len(buffers)}, n], not {each.dtype} {[*each.shape]}")
    nbytes = sum(each.shape[1] for each in data)
    for buffer in buffers:
        if offset < 0 or offset + nbytes > buffer.nbytes:
            raise DeviceError(f"{nbytes} bytes at {offset} are not within their buffer of {buffer.nbytes}")
