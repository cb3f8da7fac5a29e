"""Trials: whether a device computes what the NumPy kernels compute, on small random operands.

The features that a driver reports are no guide: a GPU may lack a feature of its family, and a virtual GPU may support
more than it reports. So a backend with several GEMM implementations tries each before using it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wasmetal.device.base import Binding, Buffer, Bytes, Device, MemoryKind
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import CATALOG, Access, Kernel, grid
from wasmetal.kernels.reference import KERNELS

FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
"""The float element types of matrices, by the suffix of a kernel's name."""
_TOLERANCE = {"f32": 1e-5, "f16": 1e-3}
"""By type of the result, relative to its largest element. Operands or sums rounded to fewer bits would exceed it."""

ROUNDED = 1e-3
"""The tolerance for sums in float32 of products whose factors were rounded to float16."""
QUANTIZED = 1e-2
"""The tolerance if one of the factors was rounded to 8 bits, with a scale for each 32."""

PATIENCE = 30.0
"""Seconds after which a trial has failed: virtual GPUs are known to hang."""


class Trial:
    """One kernel, with operands to try it on."""

    def __init__(
        self,
        kernel: Kernel,
        arrays: Sequence[Bytes],
        result: str,
        tiles: int,
        fields: Mapping[str, float],
        tolerance: float | None = None,
    ) -> None:
        """``arrays``: the bytes of each buffer; what the kernel writes is of element type ``result``.

        ``tolerance`` is relative to the largest element of the result; None for what that type allows.
        """
        given: dict[str, float] = dict.fromkeys((name for name, _ in kernel.params), 0) | dict(fields)
        self.kernel = kernel
        self._params = kernel.pack(**given)
        self._arrays = [*arrays, arrays[0]][: len(kernel.buffers)]  # no batch: bind x in its place
        self._dtype = FLOATS[result]
        self._tolerance = tolerance or _TOLERANCE[result]
        self._tiles = tiles
        self._result = next(i for i, access in enumerate(kernel.access) if access is not Access.READ)
        self._buffers: list[Buffer] = []

    def record(self, device: Device, commands: Any) -> None:
        """Record the kernel in ``commands``. Raises DeviceError if the device cannot run it."""
        self._buffers = [device.allocate(array.size, MemoryKind.SHARED) for array in self._arrays]
        for buffer, array in zip(self._buffers, self._arrays, strict=True):
            buffer.view()[:] = array
        bindings = [Binding(buffer, 0, buffer.nbytes) for buffer in self._buffers]
        commands.dispatch(self.kernel, bindings, self._params, grid(self._tiles))

    def agrees(self) -> bool:
        """Whether the kernel, which must have run, wrote what the NumPy kernel writes and nothing else."""
        got = [buffer.view() for buffer in self._buffers]
        want = [array.copy() for array in self._arrays]
        KERNELS[self.kernel.name](self.kernel.unpack(self._params), *want)()
        before, after, found = (arrays[self._result].view(self._dtype) for arrays in (self._arrays, want, got))
        bits = f"u{self._dtype.itemsize}"
        written = before.view(bits) != after.view(bits)
        results, wanted = found[written].astype(np.float64), after[written].astype(np.float64)
        close = np.abs(results - wanted) <= self._tolerance * np.abs(wanted).max()  # False for NaN
        return bool(close.all() and (found.view(bits) == before.view(bits))[~written].all())


def find_problem(device: Device, trials: Sequence[Trial], patience: float = PATIENCE) -> str | None:
    """Why a device cannot be used for the kernels of these trials; None if each agrees with the NumPy kernel.

    A device that has not finished after ``patience`` seconds cannot be used.
    """
    try:
        commands = device.record()
        for trial in trials:
            trial.record(device, commands)
        commands.finish()
        device.submit([commands]).wait(patience)
    except DeviceError as error:
        return str(error)
    wrong = [trial.kernel.name for trial in trials if not trial.agrees()]
    return f"wrong results for {wrong[0]}" if wrong else None


def chain_differs(device: Device, other: Device, length: int = 64, runs: int = 3) -> str | None:
    """How two devices differ after ``runs`` runs of a list of ``length`` dependent dispatches; None if they agree."""
    kernel, count = CATALOG["add"], 256
    strides = dict.fromkeys((f"{name}_stride" for name in ("a", "b", "out")), count)
    offsets = dict.fromkeys((f"{name}_offset" for name in ("a", "b", "out")), 0)
    params = kernel.pack(rows=1, columns=count, **strides, **offsets)
    found = []
    try:
        for each in (device, other):
            buffer = each.allocate(3 * 4 * count, MemoryKind.SHARED)
            values = buffer.view().view(np.float32)
            values[:] = np.random.default_rng(0).standard_normal(3 * count)
            thirds = [Binding(buffer, i * 4 * count, 4 * count) for i in range(3)]
            commands = each.record()
            for i in range(length):
                bindings = [thirds[(i + j) % 3] for j in range(3)]
                commands.dispatch(kernel, bindings, params, grid(-(-count // kernel.threads[0])))
            commands.finish()
            for _ in range(runs):
                values *= 1e-6
                each.submit([commands]).wait(PATIENCE)
            found.append(values.tobytes())
    except DeviceError as error:
        return str(error)
    return None if found[0] == found[1] else "wrong results for a chain of kernels"
