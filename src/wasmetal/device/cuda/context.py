"""A GPU's primary context, and the driver's objects in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from wasmetal.device.cuda.api import QuickCall, call, make
from wasmetal.device.cuda.physical import PhysicalDevice
from wasmetal.device.release import on_release
from wasmetal.errors import DeviceError


class Context:
    """The primary context, which everything in this process on one GPU shares."""

    def __init__(self, physical: PhysicalDevice) -> None:
        """Raises DeviceError, such as OutOfDeviceMemoryError: a context takes some hundred MB of the GPU's memory."""
        self.physical = physical
        self._handle = call("cuDevicePrimaryCtxRetain", physical.handle)
        self.making_current = QuickCall("cuCtxSetCurrent", int(self._handle))
        """In the calling thread, as the driver's functions expect."""
        on_release(self, call, "cuDevicePrimaryCtxRelease", physical.handle)

    def use(self) -> None:
        """Make the context current in the calling thread, as the driver's functions expect. Raises DeviceLostError."""
        make(self.making_current)

    def release(self, function: Callable[..., object], *args: Any) -> None:
        """Call what releases something in this context, then make that one current again that was. Raises nothing.

        Finalizers call it at any time, such as between :meth:`use` and a call in another GPU's context.
        """
        with contextlib.suppress(DeviceError):  # a lost GPU has released everything
            call("cuCtxPushCurrent", self._handle)
            try:
                function(*args)
            finally:
                call("cuCtxPopCurrent")

    def release_with(self, owner: object, function: str, *args: Any, keeps: object = None) -> None:
        """Call a function of the driver's in this context once nothing refers to ``owner``; then let ``keeps`` go."""
        on_release(owner, _release, self, function, args, keeps)


def _release(context: Context, function: str, args: tuple[Any, ...], _keeps: object) -> None:
    context.release(call, function, *args)


class Owned:
    """An object of the driver's, destroyed once nothing refers to this one."""

    def __init__(self, context: Context, what: str, *args: Any) -> None:
        """Make it with ``cu<what>Create``. Raises DeviceError."""
        context.use()
        self.handle = call(f"cu{what}Create", *args)
        context.release_with(self, f"cu{what}Destroy", self.handle)
