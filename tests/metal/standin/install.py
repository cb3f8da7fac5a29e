"""Putting the stand-in where ``import Metal`` finds it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metal.standin.foundation import Foundation, Objc
from metal.standin.framework import Framework, broken
from metal.standin.gpu import Gpu

PACKAGE = "wasmetal.device.metal"


@contextmanager
def installed(*gpus: Gpu) -> Iterator[Gpu]:
    """Within it ``wasmetal.device.metal`` runs on the stand-in, with these GPUs or one; gives the first.

    Afterwards all is as before, and what broke a rule in passing is raised.
    """
    gpus = gpus or (Gpu(),)
    modules: dict[str, Any] = {"Metal": Framework(list(gpus)), "Foundation": Foundation(gpus[0]), "objc": Objc(gpus[0])}
    saved = {name: sys.modules.get(name) for name in modules}
    forgotten = _forget()
    sys.modules.update(modules)
    broken.clear()
    try:
        yield gpus[0]
    finally:
        _forget()
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        sys.modules.update(forgotten)
    assert not broken, broken


def _forget() -> dict[str, Any]:
    """Take the device's modules out, so that the next import runs them anew."""
    names = [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}
