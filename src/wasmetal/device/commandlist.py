"""Command lists: each dispatch is checked and recorded; the backend builds the list when it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wasmetal.device.backend import AnyBackend, Dispatch, Grid, Range, Recording
from wasmetal.device.base import Binding, Submission
from wasmetal.device.buffer import allocation_of
from wasmetal.device.checks import check_binding, check_call
from wasmetal.device.shuffles import shuffled
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel

_CLOSED = "the command list is closed; record a new one"


class RecordedList:
    """A command list, for any backend."""

    def __init__(self, backend: AnyBackend) -> None:
        self.backend: AnyBackend | None = backend
        """The backend of the list's device; None once the list is closed."""
        self.submission: Submission | None = None
        """The latest submission of the list."""
        self._dispatches: list[Dispatch[Any, Any]] = []
        self._recording: Recording | None = None

    @property
    def recording(self) -> Recording:
        """The result of :meth:`finish`. Raises DeviceError if the list is not finished, or is closed."""
        if self._recording is None:
            if self.backend is None:
                raise DeviceError(_CLOSED)
            raise DeviceError("the command list is not finished; finish it before submitting it")
        return self._recording

    @property
    def pending(self) -> bool:
        """Whether a submission of the list is not known to have ended."""
        return self.submission is not None and self.submission.pending

    def dispatch(self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: Grid) -> None:
        """Record one kernel. Raises DeviceError if arguments do not fit, or the list is finished or closed."""
        backend = self._open()
        check_call(backend.info, kernel, bindings, params, groups, backend.grid_limits)
        ranges = tuple([_range(backend, binding) for binding in bindings])
        if backend.info.shuffles:
            kernel = shuffled(kernel, params)
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
            raise DeviceError("the command list is finished; record a new one")
        return self.backend


def _range(backend: AnyBackend, binding: Binding) -> Range[Any]:
    """A binding's range, checked against its buffer and the device."""
    allocation = allocation_of(binding.buffer, backend)
    check_binding(backend.info, binding)
    return Range(allocation, binding.offset, binding.nbytes)
