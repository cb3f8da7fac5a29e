"""Command lists of one small kernel, and host pages with any address, length and protection."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from wasmetal.device import Binding, Buffer, CommandList, Device, MemoryKind
from wasmetal.kernels.catalog import CATALOG, grid

Floats = NDArray[np.float32]


def floats(buffer: Buffer) -> Floats:
    """A host-visible buffer's bytes as float32."""
    return buffer.view().view(np.float32)


def span(buffer: Buffer, start: int, count: int) -> Binding:
    """``count`` float32 values of a buffer, from index ``start``."""
    return Binding(buffer, 4 * start, 4 * count)


def spent_time(device: Device, seconds: float) -> bool:
    """Whether ``seconds`` can be the device time of some work. A virtual GPU may report 0."""
    return seconds > 0 or (seconds == 0 and "virtual" in device.info.name.lower())


class Vectors:
    """Vectors of ``count`` float32 values in one buffer, each at the device's offset alignment."""

    def __init__(
        self,
        device: Device,
        number: int,
        count: int,
        kind: MemoryKind = MemoryKind.SHARED,
        buffer: Buffer | None = None,
    ) -> None:
        """In a new buffer, or at the start of ``buffer``."""
        alignment = device.info.offset_alignment
        self._device = device
        self._count = count
        self._stride = -(-4 * count // alignment) * alignment
        self.buffer = buffer or device.allocate(number * self._stride, kind)

    def __getitem__(self, number: int) -> Binding:
        return Binding(self.buffer, number * self._stride, 4 * self._count)

    def view(self, number: int) -> Floats:
        """A view of a vector's values, in host-visible memory."""
        return self.buffer.view()[number * self._stride :][: 4 * self._count].view(np.float32)

    def write(self, number: int, values: Floats | float) -> None:
        """Set a vector's values, in any memory."""
        data = np.broadcast_to(np.asarray(values, np.float32), self._count).copy()
        self._device.write(self.buffer, number * self._stride, data.view(np.uint8))

    def read(self, number: int) -> Floats:
        """A copy of a vector's values, in any memory."""
        out = np.empty(4 * self._count, np.uint8)
        self._device.read(self.buffer, number * self._stride, out)
        return out.view(np.float32)


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
    """Host pages with the interface of an aperture: any address, any length, any protection."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes

    def view(self) -> NDArray[np.uint8]:
        return np.ctypeslib.as_array(ctypes.cast(self.address, ctypes.POINTER(ctypes.c_uint8)), (self.nbytes,))
