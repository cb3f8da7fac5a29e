"""What a device may still use although nobody waits for it any more: kept alive on purpose until that has ended.

A kernel that hangs cannot be stopped. Its buffers, and the pages of a guest among them, must stay mapped, and Vulkan
forbids destroying a device that is at work. So they outlive their owners here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

from wasmetal.device.waiting import wait_in_slices
from wasmetal.errors import DeviceLostError, DeviceTimeoutError
from wasmetal.forked import Origin

PATIENCE = 30.0
"""Seconds that a copy may take, with all work before it."""

# Single operations on a dict are atomic in Python, so no lock is needed, and finalizers may call keep().
_kept: dict[int, tuple[Origin, Callable[[], bool], object]] = {}
_numbers = itertools.count()


def keep(ended: Callable[[], bool], used: object) -> None:
    """Refer to ``used`` until ``ended()``, which is asked now and by :func:`release_ended`, or DeviceLostError."""
    if not _over(ended):
        _kept[next(_numbers)] = Origin("abandoned work"), ended, used


def finish(wait: Callable[[float], bool], used: object, device: str) -> None:
    """Wait for work, such as a copy, until ``wait(seconds)`` is true. If the wait ends sooner, ``used`` is kept.

    Raises DeviceLostError, also if the device, which is named, has not answered after PATIENCE seconds.
    """
    try:
        wait_in_slices(wait, PATIENCE)
    except BaseException as error:  # no answer in time, Ctrl-C, or a lost device
        keep(partial(wait, 0), used)
        if isinstance(error, DeviceTimeoutError):
            reason = f"{device} has not answered for {PATIENCE:g} s; open it again or use another device"
            raise DeviceLostError(reason) from None
        raise


def release_ended() -> None:
    """Let go of what devices have finished with. Called whenever a device is opened, closed or given work.

    In a forked process, the devices of its parent are not asked.
    """
    if not _kept:
        return
    for number, (origin, ended, _) in tuple(_kept.items()):
        if origin.here and _over(ended):
            _kept.pop(number, None)


def _over(ended: Callable[[], bool]) -> bool:
    try:
        return ended()
    except DeviceLostError:  # a lost device runs nothing
        return True
