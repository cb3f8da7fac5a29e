"""The paged KV cache: a model's pool of pages, which forked sessions share until one of them writes to a page.

A page holds the keys and values of PAGE_SIZE positions for every layer. After W. Kwon et al., "PagedAttention", 2023.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wasmetal.counters import Counters
from wasmetal.device.base import Bytes
from wasmetal.errors import OutOfDeviceMemoryError
from wasmetal.models.buffers import BufferGroup
from wasmetal.ops import DType, Recorder, scale

PAGE_SIZE = 32
"""Positions per page."""


class KVCache:
    """The pages of one model on one device: ``pages`` of them, float32, counted by reference.

    ``layers`` has, per layer, the pools of keys and of values, f32 [pages, PAGE_SIZE, kv_heads, head_dim].
    """

    def __init__(self, buffers: BufferGroup, layers: int, kv_heads: int, head_dim: int, pages: int):
        self._device = buffers.device
        pool = (pages, PAGE_SIZE, kv_heads, head_dim)
        self.layers = [(buffers.tensor(*pool), buffers.tensor(*pool)) for _ in range(layers)]
        self._row = DType.F32.row_bytes(kv_heads * head_dim)
        self._references = np.zeros(pages, np.int32)
        self._given_back: deque[list[int]] = deque()

    @property
    def position_bytes(self) -> int:
        """Bytes per position, over all layers."""
        return len(self.layers) * 2 * self._row

    @property
    def free(self) -> int:
        """How many pages are free."""
        self._take_back()
        return int(np.count_nonzero(self._references == 0))

    def extend(self, pages: list[int], count: int) -> None:
        """Append ``count`` new pages. Raises OutOfDeviceMemoryError if too few are free, and appends none.

        A session's pages are consecutive as long as that is possible: devices read one range faster than many.
        """
        self._check_room(count, self.free)
        for _ in range(count):
            page = pages[-1] + 1 if pages else 0
            if page == len(self._references) or self._references[page]:
                page = self._roomiest()
            self._references[page] = 1
            pages.append(page)

    def replace(self, pages: list[int], count: int) -> None:
        """Replace all pages with ``count`` new ones. Raises OutOfDeviceMemoryError and then changes nothing."""
        self._check_room(count, self.free + sum(int(self._references[page]) == 1 for page in pages))
        self.release(pages)
        self.extend(pages, count)

    def share(self, pages: Sequence[int]) -> list[int]:
        """The same pages for another holder, which must release them too."""
        for page in pages:
            self._references[page] += 1
        return list(pages)

    def release(self, pages: list[int], keep: int = 0) -> None:
        """Release all pages but the first ``keep``."""
        for page in pages[keep:]:
            self._references[page] -= 1
        del pages[keep:]

    def give_back(self, pages: list[int]) -> None:
        """Release all pages soon: before the next are asked for. Takes no lock, so that finalizers may call it."""
        self._given_back.append(pages)

    def _take_back(self) -> None:
        while self._given_back:
            self.release(self._given_back.popleft())

    def unshare(self, pages: list[int], index: int, counters: Counters) -> None:
        """Copy the page at ``index``, on the device, if others hold it too, so that the holder may write to it.

        The cost of the copy is added to ``counters``.
        """
        shared = pages[index]
        if self._references[shared] == 1:
            return
        copy: list[int] = []
        self.extend(copy, 1)
        commands = self._device.record()
        rec = Recorder(self._device.info, commands)
        for pool in (pool for layer in self.layers for pool in layer):
            scale(rec, pool.rows(shared, shared + 1), 1.0, pool.rows(copy[0], copy[0] + 1))
        commands.finish()
        submission = self._device.submit([commands])
        submission.wait()
        counters.count_submission(submission.seconds, submission.dispatches)
        commands.close()
        self._references[shared] -= 1
        pages[index] = copy[0]

    def read(self, pages: Sequence[int], length: int) -> Bytes:
        """The first ``length`` positions as bytes [layers, 2, length, kv_heads * head_dim * 4]; counted as copied."""
        out = np.empty((len(self.layers), 2, length, self._row), np.uint8)
        for layer, pools in enumerate(self.layers):
            for which, pool in enumerate(pools):
                for begin, end, slot in _runs(pages, length):
                    self._device.read(pool.buffer, slot * self._row, out[layer, which, begin:end].reshape(-1))
        return out

    def write(self, pages: Sequence[int], length: int, data: Bytes) -> None:
        """The reverse of :meth:`read`."""
        rows = data.reshape(len(self.layers), 2, length, self._row)
        for layer, pools in enumerate(self.layers):
            for which, pool in enumerate(pools):
                for begin, end, slot in _runs(pages, length):
                    self._device.write(pool.buffer, slot * self._row, rows[layer, which, begin:end].reshape(-1))

    def _check_room(self, count: int, free: int) -> None:
        if count > free:
            raise OutOfDeviceMemoryError(
                f"the key-value cache has no room for {count * PAGE_SIZE} more tokens ({free * PAGE_SIZE} of "
                f"{len(self._references) * PAGE_SIZE} are free); close or truncate other sessions"
            )

    def _roomiest(self) -> int:
        """A free page in the middle of the largest free range, so that growing sequences stay contiguous for long."""
        free: NDArray[np.int8] = np.concatenate(([0], self._references == 0, [0])).astype(np.int8)
        begins, ends = np.flatnonzero(np.diff(free) == 1), np.flatnonzero(np.diff(free) == -1)
        widest = np.argmax(ends - begins)
        begin, end = int(begins[widest]), int(ends[widest])
        return begin if begin == 0 else (begin + end) // 2


def _runs(pages: Sequence[int], length: int) -> Iterator[tuple[int, int, int]]:
    """Positions 0..length as runs of consecutive slots: (first position, end, first slot)."""
    begin = 0
    for position in range(PAGE_SIZE, length + PAGE_SIZE, PAGE_SIZE):
        page = position // PAGE_SIZE
        if position >= length or pages[page] != pages[page - 1] + 1:
            first = pages[begin // PAGE_SIZE]
            yield begin, min(position, length), first * PAGE_SIZE
            begin = position
