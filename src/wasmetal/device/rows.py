"""Rows of arrays copied to and from many places in host memory at once: keys and values of a session."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate, groupby

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
        self._described = np.array([addresses, strides, sizes, begins], np.uint64).reshape(4, -1)
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

    def fill(self, first: int, sources: Sequence[int]) -> None:
        """The reverse of :meth:`copy`: copy what is at these addresses to row ``first`` and those that follow."""
        compiled = library()
        if compiled and self._contiguous:
            numbers, places = np.arange(len(sources), dtype=np.uint64), np.array(sources, np.uint64)
            # Arrays of the same shape are for C as many targets, to each of which it copies a piece of every source.
            for (stride, size), group in groupby(self._described.T.tolist(), lambda described: described[1:3]):
                some = list(group)
                targets = [address + first * stride for address, *_ in some]
                sizes = np.full(len(sources), size, np.uint64)
                compiled.copy_rows(targets, places + np.uint64(some[0][3]), sizes, sizes, numbers * np.uint64(stride))
            return
        for row, source in enumerate(sources, first):
            joined = np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(source))
            begin = 0
            for each in self._data:
                each[row] = joined[begin : begin + each.shape[1]]
                begin += each.shape[1]
