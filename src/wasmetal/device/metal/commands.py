"""Command lists: dispatches noted as they come, and turned into encoder calls when the list is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wasmetal.device.base import Binding
from wasmetal.device.checks import check_binding, check_call
from wasmetal.device.hazards import Hazards, Touch
from wasmetal.device.metal.buffer import MetalBuffer
from wasmetal.device.metal.encoding import Encoding
from wasmetal.device.metal.memory import Allocation, allocate
from wasmetal.device.metal.pipeline import Pipeline, Pipelines
from wasmetal.device.metal.products import Product, Products
from wasmetal.device.metal.queue import Queue
from wasmetal.device.metal.stream import Stream
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel

_SLOT = 256
"""Bytes from one parameter struct to the next: what every GPU takes as the offset of a ``constant`` argument."""

_LARGEST_GRID = (2**32 - 1,) * 3
"""Threadgroups that kernels can count, along each side; Metal has no limit of its own."""


@dataclass(frozen=True, slots=True)
class _Range:
    """A binding, checked; it holds on to the allocation even if the buffer is closed before the list is finished."""

    allocation: Allocation
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Dispatch:
    kernel: Kernel
    by: Pipeline | Product
    """What computes it."""
    ranges: tuple[_Range, ...]
    params: bytes
    groups: tuple[int, int, int]


class Recording:
    """A finished list: the encoder calls that run it, and all that they use."""

    def __init__(self, queue: Queue, dispatches: Sequence[_Dispatch]) -> None:
        self.dispatches = len(dispatches)
        self.products = sum(isinstance(dispatch.by, Product) for dispatch in dispatches)
        self._passes: list[Encoding | Product] = []
        self._keeps: list[object] = [(dispatch.by, dispatch.ranges) for dispatch in dispatches]
        if dispatches:
            self._encode(queue, dispatches)

    def encode(self, stream: Stream) -> None:
        """Make the calls."""
        for part in self._passes:
            part.encode(stream)

    def _encode(self, queue: Queue, dispatches: Sequence[_Dispatch]) -> None:
        """The parameters of all dispatches lie in one buffer, equal ones once, and are argument 0 of each kernel."""
        slots = {params: slot * _SLOT for slot, params in enumerate(dict.fromkeys(d.params for d in dispatches))}
        params = allocate(queue, len(slots) * _SLOT)
        self._keeps.append(params)
        for content, offset in slots.items():
            params.view()[offset : offset + len(content)] = np.frombuffer(content, np.uint8)
        encoding = None
        for dispatch in dispatches:
            if isinstance(dispatch.by, Product):  # ordered behind all before it, as all after it are behind it
                self._passes.append(dispatch.by)
                encoding = None
                continue
            if encoding is None:
                hazards, encoding = Hazards(), Encoding()
                self._passes.append(encoding)
            if hazards.needs_barrier(_touches(dispatch)):
                encoding.barrier()
            encoding.pipeline(dispatch.by.handle)
            encoding.argument(0, *params.bind(slots[dispatch.params]))
            for index, bound in enumerate(dispatch.ranges, start=1):
                encoding.argument(index, *bound.allocation.bind(bound.offset))
            encoding.dispatch(dispatch.groups, dispatch.kernel.threads)


class MetalCommandList:
    """Dispatches under way to becoming a :class:`Recording`."""

    def __init__(self, queue: Queue, pipelines: Pipelines, products: Products | None = None) -> None:
        """Kernels run by ``pipelines``, but for those that ``products`` finds."""
        self._queue = queue
        self._pipelines = pipelines
        self._products = products
        self._dispatches: list[_Dispatch] | None = []
        self._recording: Recording | None = None

    @property
    def queue(self) -> Queue:
        """The queue of the device that the list is for."""
        return self._queue

    @property
    def recording(self) -> Recording:
        """What :meth:`finish` made. Raises DeviceError before that, and once the list is closed."""
        if self._recording is None:
            raise DeviceError(
                "the command list is closed" if self._dispatches is None else "the command list is not finished"
            )
        return self._recording

    def dispatch(
        self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: tuple[int, int, int]
    ) -> None:
        """Note one kernel. Raises DeviceError where it does not fit the kernel or the device."""
        dispatches = self._open()
        check_call(self._queue.physical.info, kernel, bindings, params, groups, _LARGEST_GRID)
        ranges = tuple(_resolve(self._queue, binding) for binding in bindings)
        product = None
        if self._products is not None:
            places = [bound.allocation.bind(bound.offset) for bound in ranges]
            product = self._products.find(kernel, params, places)
        dispatches.append(_Dispatch(kernel, product or self._pipelines.get(kernel), ranges, params, groups))

    def finish(self) -> None:
        """End recording."""
        self._recording = Recording(self._queue, self._open())
        self._dispatches = []

    def close(self) -> None:
        """Let everything go; a pending submission keeps what it uses until it has ended. Idempotent."""
        self._recording = self._dispatches = None

    def _open(self) -> list[_Dispatch]:
        if self._dispatches is None:
            raise DeviceError("the command list is closed")
        if self._recording is not None:
            raise DeviceError("the command list is finished: record another")
        return self._dispatches


def _resolve(queue: Queue, binding: Binding) -> _Range:
    """A binding's range, checked against its buffer and the device."""
    buffer = binding.buffer
    if not isinstance(buffer, MetalBuffer) or buffer.allocation.queue is not queue:
        raise DeviceError("a buffer of another device cannot be bound")
    check_binding(queue.physical.info, binding)
    return _Range(buffer.allocation, binding.offset, binding.nbytes)


def _touches(dispatch: _Dispatch) -> list[Touch]:
    """The byte ranges that a dispatch reads and writes, by host address: two buffers over the same pages are one."""
    return [
        (access, None, bound.allocation.address + bound.offset, bound.allocation.address + bound.offset + bound.nbytes)
        for access, bound in zip(dispatch.kernel.access, dispatch.ranges, strict=True)
    ]
