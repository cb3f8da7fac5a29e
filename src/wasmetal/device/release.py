"""Releasing what a driver holds for a Python object."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from wasmetal.forked import Origin


def on_release(owner: object, function: Callable[..., None], *args: Any) -> None:
    """Call ``function(*args)`` once nothing refers to ``owner``.

    ``args`` stay alive until that call. An object that must outlive the owner is passed among them, which fixes the
    order of destruction even if all become garbage at once. Nothing is called at interpreter exit, because drivers have
    begun to shut down by then, nor in a forked process, which does not own what its parent opened.
    """
    weakref.finalize(owner, _release, Origin("a driver's object"), function, args).atexit = False


def _release(origin: Origin, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    if origin.here:
        function(*args)
