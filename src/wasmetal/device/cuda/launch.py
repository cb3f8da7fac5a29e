"""A kernel's launch, ready to be started."""

from __future__ import annotations

import ctypes
from typing import Any

from wasmetal.device.backend import Dispatch
from wasmetal.device.cuda.api import call
from wasmetal.device.cuda.memory import CudaAllocation
from wasmetal.device.cuda.pipeline import Pipeline


class Launch:
    """The arguments of ``cuLaunchKernel``, ready to be passed."""

    def __init__(self, dispatch: Dispatch[CudaAllocation, Pipeline]) -> None:
        """A kernel takes the address of each binding, then its struct of parameters."""
        addresses = [(bound.allocation.device_address or 0) + bound.offset for bound in dispatch.ranges]
        places = (ctypes.c_uint64 * len(addresses))(*addresses)
        struct = ctypes.create_string_buffer(dispatch.params, max(1, len(dispatch.params)))
        starts = [ctypes.addressof(places) + 8 * i for i in range(len(addresses))]
        arguments = (ctypes.c_uint64 * (len(starts) + 1))(*starts, ctypes.addressof(struct))
        self._keeps = places, struct, arguments, dispatch.code, dispatch.ranges
        self._function = dispatch.code.function
        across, down, deep = dispatch.groups
        self._shape = across, down, deep * dispatch.code.spread, *dispatch.code.threads, 0
        self._arguments = ctypes.addressof(arguments)

    def start(self, stream: Any) -> None:
        """Start the kernel on a stream. Raises DeviceLostError."""
        call("cuLaunchKernel", self._function, *self._shape, stream, self._arguments, 0)
