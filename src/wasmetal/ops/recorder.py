"""Recording kernels on tensors into a device's command list."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence

from wasmetal.device.base import Binding, CommandList, DeviceInfo
from wasmetal.errors import OpError
from wasmetal.kernels.catalog import CATALOG, WORD, Argument, grid
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import Part, Work


class Recorder:
    """Records kernels on tensors into a command list.

    Bindings are aligned more coarsely than tensors. So a tensor is bound from the nearest aligned byte before it, and
    the kernel is told at which element of the binding it begins.
    """

    slice: float = math.inf
    """Operations above which a dispatch is cut into several, as far as it can be."""

    def __init__(self, info: DeviceInfo, commands: CommandList):
        self.info = info
        self.commands = commands
        self._max_binding_bytes = min(info.max_binding_bytes, 2**32)
        self.max_tensor_bytes = self._max_binding_bytes - info.offset_alignment
        """Bytes of the longest tensor that fits one binding wherever it begins. Kernels count in 32 bits."""

    def parts(self, op: str, work: Work) -> Iterable[Part]:
        """The parts in which an op is to be recorded: slices of at most ``slice`` operations."""
        return work.cut(self.slice)

    def dispatch(self, name: str, tensors: Sequence[Tensor], groups: int, work: int, /, **fields: float) -> None:
        """Record the kernel ``name`` on ``tensors``, one for each of its buffers, with ``groups`` groups.

        ``work`` is what it costs, in operations. ``fields`` are its parameters other than the offsets. Raises OpError
        if a tensor or a number is too large.
        """
        kernel = CATALOG[name]
        bindings = []
        for argument, tensor in zip(kernel.buffers, tensors, strict=True):
            binding = self._binding(name, argument, tensor)
            bindings.append(binding)
            fields.setdefault(f"{argument.name}_offset", (tensor.offset - binding.offset) // argument.element)
        try:
            params = kernel.pack(**fields)
        except OverflowError:
            raise OpError(f"{name}: a number is beyond float32; use a smaller one") from None
        except struct.error:
            raise OpError(f"{name}: a dimension or stride is beyond 32 bits; use smaller tensors") from None
        self.commands.dispatch(kernel, bindings, params, grid(groups))

    def _binding(self, name: str, argument: Argument, tensor: Tensor) -> Binding:
        begin = tensor.offset - tensor.offset % self.info.offset_alignment
        end = -(-(tensor.offset + tensor.nbytes) // WORD) * WORD
        if end > tensor.buffer.nbytes:
            problem = f"ends within a word at the end of its buffer; make the buffer {WORD} bytes longer"
        elif end - begin > self._max_binding_bytes:
            problem = f"takes {end - begin} bytes; {self.info.name} can bind {self.info.max_binding_bytes} at a time"
        else:
            return Binding(tensor.buffer, begin, end - begin)
        raise OpError(f"{name}: {argument.name} {tensor.dtype.name} {tensor.shape} {problem}")
