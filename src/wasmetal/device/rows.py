"""Rows of arrays copied to many places in host memory at once: keys and values of a thawed session."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from wasmetal.device.base import Bytes
from wasmetal.device.cpu.library import library


def copy_rows(targets: Sequence[int], data: Sequence[Bytes]) -> None:
    """Copy uint8 arrays [len(targets), n]: row i of each, one after the other, to address i.

    On the threads of the CPU device's compiled kernels, and past the caches if it is much, where there are any.
    """
    compiled = library()
    if compiled and all(each.strides[1] == 1 for each in data):
        compiled.copy_rows(targets, data)
        return
    for row, target in enumerate(targets):
        joined = np.concatenate([each[row] for each in data])
        ctypes.memmove(target, joined.ctypes.data, joined.size)
