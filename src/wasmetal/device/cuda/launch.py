"""A kernel's launch, ready to be started."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from wasmetal.device.backend import Grid, Range
from wasmetal.device.cuda.api import call, cu
from wasmetal.device.cuda.memory import CudaAllocation
from wasmetal.device.cuda.pipeline import Pipeline


class Launch:
    """The arguments of a launch, ready to be passed."""

    def __init__(
        self, code: Pipeline, ranges: Sequence[Range[CudaAllocation]], params: bytes, groups: Grid, early: bool = False
    ) -> None:
        """A kernel takes the address of each binding, then its struct of parameters.

        ``early``: it may begin before the kernel before it on the stream has ended.
        """
        addresses = [address_of(bound) for bound in ranges]
        places = (ctypes.c_uint64 * len(addresses))(*addresses)
        struct = ctypes.create_string_buffer(params, max(1, len(params)))
        starts = [ctypes.addressof(places) + 8 * i for i in range(len(addresses))]
        arguments = (ctypes.c_uint64 * (len(starts) + 1))(*starts, ctypes.addressof(struct))
        self._keeps = places, struct, arguments, code, ranges
        self._function = code.function
        across, down, deep = groups
        if code.most:
            across, down = min(across * down, code.most), 1
        self._shape = across, down, deep * code.spread, *code.threads, 0
        self._arguments = ctypes.addressof(arguments)
        self._early = _early(self._shape) if early else None

    def start(self, stream: Any) -> None:
        """Start the kernel on a stream. Raises DeviceLostError."""
        if self._early is None:
            call("cuLaunchKernel", self._function, *self._shape, stream, self._arguments, 0)
        else:
            self._early.hStream = stream
            call("cuLaunchKernelEx", self._early, self._function, self._arguments, 0)


def _early(shape: Sequence[int]) -> Any:
    """How a kernel is launched that may begin early."""
    config, attribute = cu.CUlaunchConfig(), cu.CUlaunchAttribute()
    config.gridDimX, config.gridDimY, config.gridDimZ, config.blockDimX, config.blockDimY, config.blockDimZ = shape[:6]
    attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    config.attrs, config.numAttrs = [attribute], 1
    return config


def address_of(bound: Range[CudaAllocation]) -> int:
    """Where a binding begins."""
    return (bound.allocation.device_address or 0) + bound.offset
