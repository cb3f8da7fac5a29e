"""Command lists: dispatches checked and noted as they come, and built by the backend when the list is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wasmetal.device.backend import AnyBackend, Dispatch, Grid, Range, Recording
from wasmetal.device.base import Binding, Submission
from wasmetal.device.buffer import allocation_of
from wasmetal.device.checks import check_binding, check_call
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel

_CLOSED = "the command list is closed; record another"


class RecordedList:
    """A command list of any device."""

    def __init__(self, backend: AnyBackend) -> None:
        self.backend: AnyBackend | None = backend
        """The device that the list is for; None once the list is closed."""
        self.submission: Submission | None = None
        """The latest submission of the list."""
        self._dispatches: list[Dispatch[Any, Any]] = []
        self._recording: Recording | None = None

    @property
    def recording(self) -> Recording:
        """What :meth:`finish` made. Raises DeviceError before that, and once the list is closed."""
        if self._recording is None:
            if self.backend is None:
                raise DeviceError(_CLOSED)
            raise DeviceError("the command list is not finished; finish it before it is submitted")
        return self._recording

    @property
    def pending(self) -> bool:
        """Whether a submission of the list is not known to have ended."""
        return self.submission is not None and self.submission.pending

    def dispatch(self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: Grid) -> None:
        """Note one kernel. Raises DeviceError if it does not fit the kernel or the device, or the list has ended."""
        backend = self._open()
        check_call(backend.info, kernel, bindings, params, groups, backend.grid_limits)
        ranges = tuple([_range(backend, binding) for binding in bindings])
        self._dispatches.append(Dispatch(kernel, backend.resolve(kernel, params, ranges), ranges, params, groups))

    def finish(self) -> None:
        """End recording. Raises DeviceError if the device has no room for the list."""
        self._recording = self._open().build(self._dispatches)
        self._dispatches = []

    def close(self) -> None:
        """Release everything that the list refers to; a pending submission keeps what it uses. Idempotent."""
        recording, self._recording, self.backend, self._dispatches = self._recording, None, None, []
        if recording is not None:
            recording.close()

    def _open(self) -> AnyBackend:
        if self.backend is None:
            raise DeviceError(_CLOSED)
        if self._recording is not None:
            raise DeviceError("the command list is finished; record another")
        return self.backend


def _range(backend: AnyBackend, binding: Binding) -> Range[Any]:
    """A binding's range, checked against its buffer and the device."""
    allocation = allocation_of(binding.buffer, backend)
    check_binding(backend.info, binding)
    return Range(allocation, binding.offset, binding.nbytes)
