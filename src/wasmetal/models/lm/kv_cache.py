"""The paged KV cache: a model's pool of pages, which forked sessions share until one of them writes to a page.

A page holds the keys and values of PAGE_SIZE positions for every layer, in one of the types KV (``kernels/dtypes.py``).
After W. Kwon et al., "PagedAttention", 2023. How a position lies in a page is described in ``ops/pools.py``.

The cache is only as large as it is used. Where memory takes room when it is first written to, the operating system sees
to that. On other devices the pools begin with FIRST_PAGES pages, and are replaced by larger ones when they are full:
each doubles, so that over time a page is copied less than twice. Page numbers stay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import Bytes, CommandList, Submission
from wasmetal.errors import OutOfDeviceMemoryError
from wasmetal.kernels.reference.pools import open_pool
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.lm.quota import Holder, Quota
from wasmetal.ops import DType, Recorder, Tensor, copy
from wasmetal.ops.pools import fits_q8_0

PAGE_SIZE = 32
"""Positions per page."""
FIRST_PAGES = 32
"""Pages that the pools begin with on a device whose memory takes room at once."""
_PATIENCE = 10.0
"""Most seconds that the device may take to copy a pool to a larger one, and for what it was doing before."""


@dataclass(eq=False, slots=True)
class Growth:
    """A page table that is to replace a sequence's once the device has written to the new pages."""

    table: list[int]
    fresh: list[int]
    """The new pages: those at the end, and the copy of a page that others hold too."""
    copied: tuple[int, int] | None = None
    """That page, and its copy, which is to be made before the pages are used: see :meth:`KVCache.copying`."""
    copy: CommandList | None = None
    """What makes the copy."""
    submission: Submission | None = None
    """The latest submission that writes to the new pages."""


class KVCache:
    """The pages of one model on one device: ``pages`` of them, counted by reference.

    ``layers`` has, per layer, the pools of keys and of values, [capacity, PAGE_SIZE, kv_heads, head_dim]. ``version``
    changes with them: lists that were recorded with others must be recorded again.
    """

    def __init__(
        self,
        buffers: BufferGroup,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        dtype: DType = DType.F32,
    ):
        self._buffers = buffers
        self._device = buffers.device
        self.dtype = dtype
        self._page = PAGE_SIZE, kv_heads, head_dim
        self._columns = kv_heads * head_dim
        self._row = dtype.row_bytes(self._columns)
        self.capacity = pages if self._device.info.lazy_memory else min(pages, FIRST_PAGES)
        """Pages that there is memory for."""
        self.layers = [(self._pool(self.capacity), self._pool(self.capacity)) for _ in range(layers)]
        self.version = 0
        self._references = np.zeros(pages, np.int32)
        self._given_back: deque[list[int]] = deque()
        self._holders: dict[int, Holder] = {}
        """Who holds each page that is not free. Sessions that share pages are always of one holder, unless it is
    the owner that holds them: see :meth:`keep`."""
        self._retired: list[tuple[Submission, list[int]]] = []
        self.quota = Quota(pages)
        self.owner = self.quota.join(lambda nbytes: None)
        """Holds the pages of sessions that belong to no guest."""

    @property
    def position_bytes(self) -> int:
        """Bytes per position, over all layers."""
        return self.bytes_as(self.dtype)

    def bytes_as(self, dtype: DType) -> int:
        """Bytes per position, over all layers, if the cache were of this type, which it can be."""
        return len(self.layers) * 2 * dtype.row_bytes(self._columns)

    def can_be(self, dtype: DType) -> bool:
        """Whether the cache could be of this type."""
        return dtype is not DType.Q8_0 or fits_q8_0(*self._page[1:])

    @property
    def page_bytes(self) -> int:
        """Bytes per page, over all layers."""
        return PAGE_SIZE * self.position_bytes

    @property
    def pages(self) -> int:
        """How many pages there may be."""
        return len(self._references)

    @property
    def held(self) -> int:
        """How many are held, with those that have been given back but not reclaimed. From any thread."""
        return int(np.count_nonzero(self._references))

    @property
    def free(self) -> int:
        """How many pages are free."""
        self.reclaim()
        return int(np.count_nonzero(self._references == 0))

    def extend(self, pages: list[int], count: int, holder: Holder | None = None) -> None:
        """Append ``count`` new pages, for the owner if no holder is named.

        Raises OutOfDeviceMemoryError if too few are free for the holder, and what its ``charge`` does. None is appended
        then.

        A session's pages are consecutive as long as that is possible: devices read one range faster than many.
        """
        holder = holder or self.owner
        if not count:
            return
        if count > (room := self.quota.room(holder, self.free)):
            raise OutOfDeviceMemoryError(
                f"the key-value cache has no room for {count * PAGE_SIZE} more tokens ({room * PAGE_SIZE} of "
                f"{len(self._references) * PAGE_SIZE} are free); close or truncate other sessions"
            )
        unused = int(np.count_nonzero(self._references[: self.capacity] == 0))
        if count > unused:
            self._enlarge(self.capacity + count - unused)
        holder.charge(count * self.page_bytes)
        holder.held += count
        for _ in range(count):
            page = pages[-1] + 1 if pages else 0
            if page == self.capacity or self._references[page]:
                page = self._roomiest()
            self._references[page] = 1
            self._holders[page] = holder
            pages.append(page)

    def replace(self, pages: list[int], count: int, holder: Holder | None = None) -> None:
        """Replace all pages with ``count`` that nobody else holds. If that raises what ``extend`` does, none change."""
        own = [page for page in pages if self._references[page] == 1]
        kept = own[:count]
        self.extend(kept, count - len(kept), holder)
        self.release([page for page in pages if page not in kept])
        pages[:] = kept

    def share(self, pages: Sequence[int]) -> list[int]:
        """The same pages for another holder, which must release them too."""
        for page in pages:
            self._references[page] += 1
        return list(pages)

    def keep(self, page: int) -> None:
        """Share a page that is never written to again with the owner, who is its holder from now on: so whoever held it
        may take another in its place."""
        self._references[page] += 1
        before = self._holders[page]
        if before is not self.owner:
            before.held -= 1
            before.charge(-self.page_bytes)
            self._holders[page] = self.owner
            self.owner.held += 1

    def shared(self, page: int) -> bool:
        """Whether a page is held more than once."""
        return bool(self._references[page] > 1)

    def release(self, pages: list[int], keep: int = 0) -> None:
        """Release all pages but the first ``keep``."""
        for page in pages[keep:]:
            self._references[page] -= 1
            if self._references[page] == 0:
                holder = self._holders.pop(page)
                holder.held -= 1
                holder.charge(-self.page_bytes)
        del pages[keep:]

    def give_back(self, pages: list[int]) -> None:
        """Release all pages soon: before the next are asked for. Takes no lock, so that finalizers may call it."""
        self._given_back.append(pages)

    def reclaim(self) -> None:
        """Release pages that were given back, and those that abandoned work has stopped writing to."""
        while self._given_back:
            self.release(self._given_back.popleft())
        for each in [each for each in self._retired if not each[0].pending]:
            self._retired.remove(each)
            self.release(each[1])

    def grow(self, pages: Sequence[int], length: int, count: int, holder: Holder | None = None) -> Growth:
        """The pages of a sequence of ``length`` tokens that is to get ``count`` more. ``pages`` does not change.

        Nobody else holds those that are written to: if others hold the last page too, it is copied. To be completed by
        :meth:`adopt` or :meth:`discard`. Raises what :meth:`extend` does.
        """
        table = list(pages)
        self.extend(table, page_count(length + count) - len(pages), holder)
        growth = Growth(table, table[len(pages) :])
        index = length // PAGE_SIZE
        if length % PAGE_SIZE and self._references[pages[index]] > 1:
            try:
                self.extend(growth.fresh, 1, holder)
                table[index] = growth.fresh[-1]
                growth.copied = pages[index], table[index]
            except BaseException:
                self.discard(growth)
                raise
        return growth

    def has_room(self, pages: Sequence[int], length: int, count: int = 1) -> bool:
        """Whether a sequence of ``length`` tokens can get ``count`` more on its last page, which nobody else holds.

        May be called without the model's lock by the only user of the sequence: nobody else can come to hold its pages.
        """
        index = length // PAGE_SIZE
        last = (length + count - 1) // PAGE_SIZE
        return index == last < len(pages) and self._references.item(pages[index]) == 1

    def adopt(self, pages: list[int], growth: Growth) -> None:
        """Replace the page table ``pages`` with the one of ``growth``."""
        replaced = [old for old, new in zip(pages, growth.table, strict=False) if old != new]
        pages[:] = growth.table
        self.release(replaced)
        _close(growth)

    def discard(self, growth: Growth) -> None:
        """Release the new pages, once the device no longer writes to them."""
        if growth.submission and growth.submission.pending:
            self._retired.append((growth.submission, growth.fresh))
        else:
            self.release(growth.fresh)
        _close(growth)

    def copying(self, growth: Growth) -> CommandList | None:
        """What copies the page that others hold too, to be submitted at once; None if there is none."""
        if growth.copied and not growth.copy:
            source, target = growth.copied
            pools = [pool for layer in self.layers for pool in layer]
            parts = [(pool.rows(source, source + 1), pool.rows(target, target + 1)) for pool in pools]
            growth.copy = self._copies(parts)
        return growth.copy

    def read(self, pages: Sequence[int], counts: Sequence[int], first: int = 0) -> list[Bytes]:
        """So many positions from ``first`` on, and so on: bytes [layers, 2, count, bytes of a row]; counted as copied.

        A row is [kv_heads, head_dim] in the type of the cache: those of keys, then those of values.
        """
        row, pieces = self._row, 2 * len(self.layers)
        blocks = [np.empty((pieces, count * row), np.uint8) for count in counts]
        pools = [pool.buffer for pools in self.layers for pool in pools]
        for slot, parts in _blocks_of_runs(_runs(pages, first + sum(counts), first), counts, first):
            out = [blocks[block][:, begin * row : end * row] for block, begin, end in parts]
            self._device.read_rows(pools, slot * row, *out)
        return [block.reshape(len(self.layers), 2, -1, row) for block in blocks]

    def write(self, pages: Sequence[int], length: int, blocks: Sequence[Bytes], dtype: DType, first: int = 0) -> None:
        """The reverse of :meth:`read`, for bytes from a cache of any type that this one can be.

        ``blocks``: what it gave for positions that follow one another. They are copied run by run, not one by one.
        """
        row = dtype.row_bytes(self._columns)
        rows = [block.reshape(2 * len(self.layers), -1) for block in blocks]
        pools = [pool.buffer for pools in self.layers for pool in pools]
        counts = [each.shape[1] // row for each in rows]
        for slot, parts in _blocks_of_runs(_runs(pages, length, first), counts, first):
            data = [rows[block][:, begin * row : end * row] for block, begin, end in parts]
            if dtype is self.dtype:
                self._device.write_rows(pools, slot * self._row, *data)
                continue
            for number, pool in enumerate(pools):
                converted = self._converted(np.concatenate([each[number] for each in data]), dtype)
                self._device.write(pool, slot * self._row, converted)

    def _converted(self, rows: Bytes, dtype: DType) -> Bytes:
        """Rows of a type in the cache's own, one after the other."""
        count = rows.size // dtype.row_bytes(self._columns)
        converted = np.empty(count * self._row, np.uint8)
        source = open_pool(dtype, rows, 0, count, 1, self._columns)
        target = open_pool(self.dtype, converted, 0, count, 1, self._columns)
        target.write(slice(None), source.read(slice(None))[:, 0])
        return converted

    def _pool(self, pages: int) -> Tensor:
        return self._buffers.tensor(pages, *self._page, dtype=self.dtype)

    def _copies(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> CommandList:
        """A list that copies tensors."""
        commands = self._device.record()
        rec = Recorder(self._device.info, commands)
        for source, target in pairs:
            copy(rec, source, target)
        commands.finish()
        return commands

    def _enlarge(self, least: int) -> None:
        """Replace the pools by larger ones, with room for ``least`` pages, or twice as many as now if that is more.

        One after the other, so that only one is there twice. Raises OutOfDeviceMemoryError: some may then be larger,
        which does no harm.
        """
        wanted = min(len(self._references), max(least, 2 * self.capacity))
        self.version += 1
        for number, (keys, values) in enumerate(self.layers):
            self.layers[number] = (larger := self._enlarged(keys, wanted)), values
            self.layers[number] = larger, self._enlarged(values, wanted)
        self.capacity = wanted

    def _enlarged(self, pool: Tensor, pages: int) -> Tensor:
        if pool.shape[0] >= pages:
            return pool
        larger = self._pool(pages)
        commands = self._copies([(pool, larger.rows(0, pool.shape[0]))])
        submission = self._device.submit([commands])
        try:
            submission.wait(_PATIENCE)
        except BaseException:
            submission.abandon()
            self._buffers.release(larger)
            raise
        finally:
            commands.close()
        self._buffers.release(pool)
        return larger

    def _roomiest(self) -> int:
        """A free page in the middle of the largest free range, so that growing sequences stay contiguous for long."""
        unused = self._references[: self.capacity] == 0
        free: NDArray[np.int8] = np.concatenate(([0], unused, [0])).astype(np.int8)
        begins, ends = np.flatnonzero(np.diff(free) == 1), np.flatnonzero(np.diff(free) == -1)
        widest = np.argmax(ends - begins)
        begin, end = int(begins[widest]), int(ends[widest])
        return begin if begin == 0 else (begin + end) // 2


def page_count(length: int) -> int:
    """Number of pages that ``length`` tokens take."""
    return -(-length // PAGE_SIZE)


def _close(growth: Growth) -> None:
    if growth.copy:
        growth.copy.close()
        growth.copy = None


def _runs(pages: Sequence[int], length: int, first: int = 0) -> Iterator[tuple[int, int, int]]:
    """Positions first..length as runs of consecutive slots: (first position, end, first slot)."""
    begin = first
    for position in range((first // PAGE_SIZE + 1) * PAGE_SIZE, length + PAGE_SIZE, PAGE_SIZE):
        page = position // PAGE_SIZE
        if position >= length or pages[page] != pages[page - 1] + 1:
            slot = pages[begin // PAGE_SIZE] * PAGE_SIZE + begin % PAGE_SIZE
            yield begin, min(position, length), slot
            begin = position


def _blocks_of_runs(
    runs: Iterable[tuple[int, int, int]], counts: Sequence[int], first: int
) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """For each run, its first slot, and the parts of blocks that lie in it: (block, first row, end).

    ``counts``: rows of each block, the first of which begins at the position ``first``.
    """
    block, start = 0, first
    for begin, end, slot in runs:
        parts = []
        at = begin
        while at < end:
            stop = min(end, start + counts[block])
            parts.append((block, at - start, stop - start))
            at = stop
            if at == start + counts[block]:
                block, start = block + 1, at
        yield slot, parts
