"""Rows of arrays copied to many places in host memory at once: keys and values of a thawed session."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from wasmetal.device.base import Bytes
from wasmetal.device.cpu.library import library


class Rows:
    """Row i of uint8 arrays of shape [rows, n], one after the other."""

    def __init__(self, data: Sequence[Bytes]) -> None:
        self._data = data
        sizes = [int(each.shape[1]) for each in data]
        *begins, self.nbytes = accumulate(sizes, initial=0)
        """Of a row."""
        addresses = [each.__array_interface__["data"][0] for each in data]
        strides = [each.strides[0] for each in data]
        self._described = np.array([addresses, strides, sizes, begins], np.uint64)
        self._contiguous = all(each.strides[1] == 1 for each in data)

    def copy(self, first: int, targets: Sequence[int]) -> None:
        """Copy row ``first`` and those that follow to these addresses.

        On the threads of the CPU device's compiled kernels, and past the caches if it is much, where there are any.
        """
        compiled = library()
        if compiled and self._contiguous:
            addresses, strides, sizes, begins = self._described
            compiled.copy_rows(targets, addresses + np.uint64(first) * strides, strides, sizes, begins)
            return
        for row, target in enumerate(targets, first):
            joined = np.concatenate([each[row] for each in self._data])
            ctypes.memmove(target, joined.ctypes.data, joined.size)
