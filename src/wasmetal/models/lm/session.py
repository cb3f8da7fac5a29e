"""One conversation with a model: the tokens so far, as pages of the model's KV cache."""

from __future__ import annotations

import struct
import weakref
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from wasmetal.closing import Closing
from wasmetal.counters import Counters
from wasmetal.device.base import Bytes, Submission
from wasmetal.errors import ModelError
from wasmetal.kernels.dtypes import KV
from wasmetal.models.lm.heads import MOST_ROWS, Head, TopLogits
from wasmetal.models.lm.kv_cache import PAGE_SIZE, Growth, page_count
from wasmetal.models.lm.multi_step import Draws
from wasmetal.models.lm.quota import Holder
from wasmetal.models.lm.states import State
from wasmetal.ops import DType, Tensor

if TYPE_CHECKING:
    from wasmetal.models.lm.model import Model
    from wasmetal.models.lm.prefix_cache import PrefixCache

_SNAPSHOT = struct.Struct("<8sIII32sQI")
"""Header of a saved session: magic, version, type of the KV cache (ggml's number), length, the model's digest, number
of bytes that follow, CRC-32 of what precedes it and what follows."""
_MAGIC = b"wasmetal"
_VERSION = 3
_LEAST_RUN = 2
"""Tokens that are run though their keys and values may be there. One alone might be computed by other kernels, and its
logits differ in their last bits."""
_PATIENCE = 10.0
"""Most seconds that the device may take to copy a page."""


class Session(Closing):
    """Made by :meth:`Model.session`. Use as a context manager, or call :meth:`close`.

    Every method raises ModelError once the session or its model is closed, and ForkedError in a process forked later.
    """

    def __init__(self, model: Model, holder: Holder):
        self.model = model
        self.holder = holder
        """Who holds the session's pages."""
        self.length = 0
        """Tokens so far."""
        self.counters = Counters()
        """What the session has cost the device. A submission for several sessions counts for each of them, with its
        seconds divided in proportion to their tokens in it."""
        self.pages: list[int] = []
        """The session's pages of the model's KV cache."""
        self.digests: dict[int, str] = {}
        """Digests of :meth:`rows`, noted by who has computed them, by where the rows end, in ascending order. Those of
        rows that may be rewritten are removed, and forks have them too; so nobody needs to read rows to find that they
        are as they were."""
        self._head: Head | None = None
        self._give_back = weakref.finalize(self, model.cache.give_back, self.pages)

    def forward(self, tokens: Sequence[int], logits: Logits) -> None:
        """Append tokens, and have the device write the logits after the last one into ``logits``.

        ``logits`` is f32 [vocab_size] in a buffer of the model's device; or a :class:`TopLogits`, to be given only the
        largest; or several of those, for the logits after each of the last tokens, or several :class:`State`, for the
        states; or None if they are not wanted. The cost is added to ``counters``. Raises ModelError if there are no
        tokens, an unknown one, or more than the context holds; OutOfDeviceMemoryError if the cache is full; OpError if
        ``logits`` is of another shape or type. The session is then unchanged.
        """
        self._open().forward([Request(self, tokens, logits)])

    def steps(self, tokens: Sequence[int], logits: Logits) -> Generator[Submission | None]:
        """:meth:`forward` in steps: see :meth:`Model.steps`.

        An empty session of a holder that shares prefixes begins with what others have run of the tokens, if the model
        keeps that, and then runs the rest: at least those after which logits are wanted.
        """
        model = self._open()
        if self.length or model.prefixes is None or self.holder.prefixes is None:
            return model.steps([Request(self, tokens, logits)])
        return self._after_prefix(model, model.prefixes, self.holder.prefixes, tokens, logits)

    def _after_prefix(
        self, model: Model, cache: PrefixCache, scope: str, tokens: Sequence[int], logits: Logits
    ) -> Generator[Submission | None]:
        wanted = len(self.heads_into(logits))
        self.check(tokens, wanted)
        with model.lock:
            self.pages += cache.find(scope, tokens[: len(tokens) - max(wanted, _LEAST_RUN)])
            self.length = reused = len(self.pages) * PAGE_SIZE
        try:
            yield from model.steps([Request(self, tokens[reused:], logits)])
        except BaseException:
            self.truncate(0)
            raise
        self.holder.reused += reused
        with model.lock:
            cache.add(scope, tokens, self.pages)

    def choose(self, token: int, draws: Draws) -> Generator[Submission | None]:
        """Append a token, have the device choose the next one and append that, and so on: see :meth:`Model.choose`."""
        return self._open().choose(self, token, draws)

    def fork(self) -> Session:
        """A new session with the same tokens. The two share pages of the cache until one writes to them."""
        model = self._open()
        other = model.session(self.holder)
        with model.lock:
            other.pages += model.cache.share(self.pages)
        other.length = self.length
        other.digests |= self.digests
        return other

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens. Raises ModelError if there are fewer."""
        model = self._open()
        if not 0 <= length <= self.length:
            raise ModelError(f"cannot truncate {self.length} tokens to {length}")
        with model.lock:
            model.cache.release(self.pages, keep=page_count(length))
        self.length = length
        while self.digests and next(reversed(self.digests)) > length:
            self.digests.popitem()

    @property
    def state_bytes(self) -> int:
        """Number of bytes that :meth:`save` returns."""
        return _SNAPSHOT.size + self.length * self.model.cache.position_bytes

    def save(self) -> bytes:
        """The session's state, for :meth:`restore` with the same model, here or elsewhere.

        A header and, per layer, the keys and values of the tokens so far, in the type of the cache. Counted in
        ``bytes_copied``.
        """
        model = self._open()
        with model.lock:
            state = model.cache.read(self.pages, [self.length])[0].reshape(-1)
        self.counters.bytes_copied += state.size
        described = (_MAGIC, _VERSION, model.cache.dtype.value, self.length, model.digest, state.size)
        header = _SNAPSHOT.pack(*described, 0)
        return _SNAPSHOT.pack(*described, _checksum(header, state)) + state.data

    def restore(self, state: bytes) -> None:
        """Replace the session's state with a saved one. Counted in ``bytes_copied``.

        A state from a cache of another type is converted, and then as exact as the coarser of the two. Raises
        ModelError if the state is damaged, of another model or version, or too long for the context, and
        OutOfDeviceMemoryError if the cache has no room for it. The session is then unchanged.
        """
        model = self._open()
        if len(state) < _SNAPSHOT.size:
            raise ModelError(f"a saved session of {len(state)} bytes has no header")
        magic, version, kind, length, digest, size, crc = _SNAPSHOT.unpack_from(state)
        if magic != _MAGIC or version != _VERSION:
            raise ModelError(f"not a saved session of version {_VERSION}: it begins with {state[:12]!r}")
        if digest != model.digest:
            raise ModelError(f"the session was saved with another model than {model.name}")
        if length > model.context_length:
            raise ModelError(f"the saved session has {length} tokens; the context holds {model.context_length}")
        data = np.frombuffer(state, np.uint8, offset=_SNAPSHOT.size)
        dtype = next((dtype for dtype in KV if dtype.value == kind and model.cache.can_be(dtype)), None)
        if (
            dtype is None
            or not size == data.size == length * model.cache.bytes_as(dtype)
            or _checksum(state, data) != crc
        ):
            raise ModelError("the saved session is damaged")
        with model.lock:
            model.cache.replace(self.pages, page_count(length), self.holder)
            self.length = 0
            self.digests.clear()
            model.cache.write(self.pages, length, [data], dtype)
        self.counters.bytes_copied += data.size
        self.length = length

    def rows(self, begin: int, counts: Sequence[int]) -> list[Bytes]:
        """Keys and values of so many tokens from ``begin`` on, of so many after these, and so on.

        Each is bytes [layers, 2, tokens, bytes of a row], which depend on neither device nor pages, only on the type of
        the cache. Counted in ``bytes_copied``. Raises ModelError if the session has fewer tokens.
        """
        model = self._open()
        if begin < 0 or min(counts, default=0) < 0 or begin + sum(counts) > self.length:
            raise ModelError(f"{[*counts]} tokens from {begin} on of a session of {self.length}")
        with model.lock:
            blocks = model.cache.read(self.pages, counts, begin)
        self.counters.bytes_copied += sum(block.size for block in blocks)
        return blocks

    def append_rows(self, groups: Iterable[Sequence[Bytes]], count: int, dtype: DType) -> None:
        """Append ``count`` tokens by the keys and values that :meth:`rows` gave of them, from a cache of this type.

        ``groups`` of blocks, uint8 of shape [n], each of which has some of the tokens. A group is copied at once, while
        nobody else uses the model; between two, others can, so that the next one may take time to come.

        If this session's cache is of another type, they are converted, and then as exact as the coarser of the two.
        Counted in ``bytes_copied``. Raises ModelError if the bytes are not as many, or the context has no room,
        OutOfDeviceMemoryError if the cache has none, and what the iterator does. The session is then unchanged.
        """
        self.reserve_rows(count, dtype)(groups)

    def reserve_rows(self, count: int, dtype: DType) -> Callable[[Iterable[Sequence[Bytes]]], None]:
        """Reserve pages for ``count`` more tokens. Return what :meth:`append_rows` then does with the groups.

        It must be called, once, from any thread, and before the session is used for anything else. Raises what
        :meth:`append_rows` does for a lack of room.
        """
        model = self._open()
        if self.length + count > model.context_length:
            raise ModelError(f"{self.length + count} tokens are more than the context of {model.context_length}")
        with model.lock:
            growth = model.cache.grow(self.pages, self.length, count, self.holder)
        return partial(self._append_rows, growth, count, dtype)

    def _append_rows(self, growth: Growth, count: int, dtype: DType, groups: Iterable[Sequence[Bytes]]) -> None:
        model, length = self.model, self.length + count
        cache = model.cache
        try:
            with model.lock:
                if copies := cache.copying(growth):
                    growth.submission = model.device.submit([copies])
                    growth.submission.wait(_PATIENCE)
            at = self.length
            for blocks in groups:
                end = at + _tokens(blocks, cache.bytes_as(dtype) if cache.can_be(dtype) else 0, length - at)
                with model.lock:
                    cache.write(growth.table, end, blocks, dtype, at)
                at = end
            if at < length:
                raise ModelError(f"the keys and values of {length - at} tokens are missing")
        except BaseException:
            with model.lock:
                cache.discard(growth)
            raise
        with model.lock:
            cache.adopt(self.pages, growth)
        self.counters.bytes_copied += count * cache.bytes_as(dtype)
        self.length = length

    def close(self) -> None:
        """Release the session's pages. Idempotent. Takes no lock, so that finalizers may call it."""
        self.model.forget(self)
        self._give_back()
        self._drop_head()

    def _open(self) -> Model:
        self.model.origin.check()
        if not self._give_back.alive:
            raise ModelError("this session is closed; open a new one")
        return self.model

    def check(self, tokens: Sequence[int], wanted: int) -> None:
        """Raise what :meth:`forward` does if the tokens cannot be appended with logits after ``wanted`` of them."""
        model = self._open()
        count = len(tokens)
        if wanted > min(count, MOST_ROWS):
            raise ModelError(
                f"logits after {wanted} of {count} tokens; they can be had after the last {MOST_ROWS} at most"
            )
        if count == 0:
            raise ModelError("forward takes at least one token")
        if min(tokens) < 0 or max(tokens) >= model.vocab_size:
            wrong = next(t for t in tokens if not 0 <= t < model.vocab_size)
            raise ModelError(f"token {wrong} is not in the vocabulary of {model.vocab_size}")
        if self.length + count > model.context_length:
            raise ModelError(
                f"{self.length} + {count} tokens are more than the context of {model.context_length}; "
                "truncate the session or open the model with a larger context"
            )

    def heads_into(self, logits: Logits) -> Sequence[Head | TopLogits | State]:
        """What gives logits after each of the last tokens. For the model.

        The head recorded for a tensor is kept, because most callers use one tensor in every call. One whose last
        submission was abandoned, and has not ended, is replaced.
        """
        if logits is None or isinstance(logits, TopLogits):
            return [logits] if logits else []
        if not isinstance(logits, Tensor):
            return logits
        if self._head is None or logits != self._head.logits or self._head.pending:
            self._drop_head()
            self._head = self._open().head(logits)
        return [self._head]

    def _drop_head(self) -> None:
        if self._head:
            self._head.close()
            self._head = None


def _checksum(header: bytes, data: Bytes) -> int:
    """Of a saved session that begins with this header, and of its data."""
    return zlib.crc32(data.data, zlib.crc32(header[: _SNAPSHOT.size - 4]))


def _tokens(blocks: Sequence[Bytes], token_bytes: int, most: int) -> int:
    """How many tokens' keys and values these are. Raises ModelError if that is no number, or too many."""
    tokens = sum(block.size for block in blocks) // token_bytes if token_bytes else 0
    if not 0 < tokens <= most or any(block.size % token_bytes for block in blocks):
        sizes = sum(block.size for block in blocks)
        raise ModelError(f"{sizes} bytes are not the keys and values of {most} tokens, nor of the first of them")
    return tokens


Logits = Tensor | TopLogits | Sequence[TopLogits] | Sequence[State] | None
"""Where logits go."""


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens to append to a session, and where the logits after the last one go: see :meth:`Session.forward`."""

    session: Session
    tokens: Sequence[int]
    logits: Logits = None
