"""Releasing what a driver holds for a Python object."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def on_release(owner: object, function: Callable[..., None], *args: Any) -> None:
    """Call ``function(*args)`` once nothing refers to ``owner``.

    ``args`` stay alive until that call. An object that must outlive the owner is passed among them, which fixes the
    order of destruction even if all become garbage at once. Nothing is called at interpreter exit, because drivers have
    begun to shut down by then.
    """
    weakref.finalize(owner, function, *args).atexit = False
