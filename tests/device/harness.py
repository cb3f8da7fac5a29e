"""One small kernel driven by hand, and host pages of any kind."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from wasmetal.device import Binding, Buffer, CommandList, Device
from wasmetal.kernels.catalog import CATALOG, grid

Floats = NDArray[np.float32]


def floats(buffer: Buffer) -> Floats:
    """A host-visible buffer's bytes as float32."""
    return buffer.view().view(np.float32)


def span(buffer: Buffer, start: int, count: int) -> Binding:
    """``count`` float32 values of a buffer, from the value numbered ``start`` on."""
    return Binding(buffer, 4 * start, 4 * count)


def add(commands: CommandList, a: Binding, b: Binding, out: Binding) -> None:
    """Record ``out = a + b``, elementwise, float32."""
    count = out.nbytes // 4
    kernel = CATALOG["add"]
    params = kernel.pack(
        a_offset=0, b_offset=0, out_offset=0, rows=1, columns=count, a_stride=count, b_stride=count, out_stride=count
    )
    commands.dispatch(kernel, [a, b, out], params, grid(-(-count // kernel.threads[0])))


def recorded(device: Device, *sums: tuple[Binding, Binding, Binding]) -> CommandList:
    """A finished list of additions."""
    commands = device.record()
    for a, b, out in sums:
        add(commands, a, b, out)
    commands.finish()
    return commands


class Pages:
    """Host pages under a test's control, in the shape of an aperture: any address, any length, any protection."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes

    def view(self) -> NDArray[np.uint8]:
        return np.ctypeslib.as_array(ctypes.cast(self.address, ctypes.POINTER(ctypes.c_uint8)), (self.nbytes,))
