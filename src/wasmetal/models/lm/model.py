"""A model on a device, ready for sessions."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from wasmetal.counters import Counters
from wasmetal.device.base import Device, MemoryKind, Submission
from wasmetal.errors import ModelError
from wasmetal.models.architectures import read_network
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files import store
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.lm.chat_template import ChatTemplate
from wasmetal.models.lm.heads import Head
from wasmetal.models.lm.kv_cache import PAGE_SIZE, KVCache
from wasmetal.models.lm.passes import IN_FLIGHT, ROWS, SEQUENCES, Pass, Passes, Segment, settle
from wasmetal.models.lm.session import Request, Session
from wasmetal.models.lm.tokenizer import Tokenizer
from wasmetal.models.loaded import Capability
from wasmetal.ops import Tensor

DEFAULT_CONTEXT = 4096
"""Default tokens of context, unless the model was trained for fewer."""
CONTEXTS = 2
"""Size of the KV cache, shared by all sessions, in whole contexts."""


def load_model(source: str | Path, device: Device, *, context: int | None = None, trusted: bool | None = None) -> Model:
    """Load a model onto a device: a known model's name, or a path to a GGUF file.

    ``context`` is the number of tokens that a session may have, by default DEFAULT_CONTEXT, or what the model was
    trained for if that is less. ``trusted``: render the model's chat template in this process, without limits on time
    and memory; by default only for known models, which were verified when they were pulled. Raises ModelError if the
    file cannot be used, OutOfDeviceMemoryError if it is too large.
    """
    path = store.resolve(source)
    name = str(source) if source in store.CATALOG else path.stem
    return Model(
        GGUFFile(path), name, device, context, trusted=str(source) in store.CATALOG if trusted is None else trusted
    )


class Model:
    """Weights, tokenizer and cache. Use as a context manager, or call :meth:`close`. Safe to use from several threads.

    ``chat_template`` is None if the file has none.
    """

    capabilities = frozenset({Capability.LANGUAGE})

    def __init__(self, file: GGUFFile, name: str, device: Device, context: int | None = None, *, trusted: bool = False):
        self._network = read_network(file)
        self.device = device
        self.name = name
        self.config = c = self._network.config
        self.tokenizer = Tokenizer(file)
        self.chat_template = _chat_template(file, self.tokenizer, trusted)
        self.vocab_size = c.vocab_size
        self.context_length = min(c.context_length, DEFAULT_CONTEXT) if context is None else context
        if not 1 <= self.context_length <= c.context_length:
            raise file.error(f"a context of {context} tokens; 1 to {c.context_length} are supported")
        self.digest = file.digest()
        """32 bytes that identify the model's file."""
        self.lock = threading.RLock()

        self._buffers = BufferGroup(device)
        try:
            self._network.load(self._buffers, self.context_length, ROWS[-1])
            pages = -(-self.context_length // PAGE_SIZE)
            self.cache = KVCache(self._buffers, c.block_count, c.head_count_kv, c.head_dim, CONTEXTS * pages)
            passes = [Pass(device, self._network, self.cache.layers, self._buffers, pages) for _ in range(IN_FLIGHT)]
        except BaseException:
            self._buffers.close()
            raise
        self._passes = Passes(passes)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._closed = False

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the device reads for each decoded token."""
        return self._network.weight_bytes

    @property
    def counters(self) -> Counters:
        """Bytes that loading the model wrapped and loaded."""
        return self._buffers.counters

    def session(self) -> Session:
        """A new session, empty."""
        if self._closed:
            raise ModelError(f"the model {self.name} is closed")
        session = Session(self)
        self._sessions.add(session)
        return session

    def logits(self) -> Tensor:
        """A new f32 [vocab_size] tensor in shared memory for :meth:`Session.forward`. It lives as long as the model."""
        return self._buffers.tensor(self.vocab_size, kind=MemoryKind.SHARED)

    def forward(self, requests: Sequence[Request]) -> None:
        """Append tokens to several sessions at once, in as few submissions as possible.

        The cost is added to each session's counters. Raises ModelError if a session is closed, belongs to another model
        or is named twice, and what :meth:`Session.forward` raises. All sessions are then unchanged.
        """
        sessions = [request.session for request in requests]
        if len(set(sessions)) < len(sessions) or any(session.model is not self for session in sessions):
            raise ModelError("a batch takes each session once, and only sessions of its own model")
        for request in requests:
            request.session.check(request.tokens)
        heads = [request.session.head_into(request.logits) for request in requests]
        with self._reserved(requests):
            for batch in _batches([len(request.tokens) for request in requests]):
                segments, last = [], []
                row = 0
                for index, begin, end in batch:
                    request, head = requests[index], heads[index]
                    session = request.session
                    segments.append(Segment(request.tokens[begin:end], session.length + begin, session.pages))
                    row += end - begin
                    if head and end == len(request.tokens):
                        settle(head.submission)
                        head.select(row - 1)
                        last.append(head)
                submission = self._run(segments, row, last)
                for index, begin, end in batch:
                    share = submission.seconds * (end - begin) / row
                    requests[index].session.counters.count_submission(share, submission.dispatches)
        for request in requests:
            request.session.length += len(request.tokens)

    def head(self, logits: Tensor) -> Head:
        """A list that writes logits to a tensor. For sessions."""
        with self.lock:
            return Head(self.device, self._network, logits)

    def _run(self, segments: Sequence[Segment], rows: int, heads: Sequence[Head]) -> Submission:
        """One submission; the lock is not held while the device works on it."""
        with self._passes.take() as taken:
            with self.lock:
                taken.write(segments)
                submission = self.device.submit([taken.body(rows), *(head.commands for head in heads)])
            users: list[Pass | Head] = [taken, *heads]
            for user in users:
                user.submission = submission
            submission.wait()
        return submission

    @contextmanager
    def _reserved(self, requests: Sequence[Request]) -> Iterator[None]:
        """Reserve pages of the cache for every request; if the ``with`` body fails, release them again."""
        held = [len(request.session.pages) for request in requests]
        try:
            with self.lock:
                for request in requests:
                    request.session.reserve(len(request.tokens))
            yield
        except BaseException:
            with self.lock:
                for request, count in zip(requests, held, strict=True):
                    self.cache.release(request.session.pages, keep=count)
            raise

    def close(self) -> None:
        """Close the sessions and release the device's memory. Idempotent."""
        self._closed = True
        for session in list(self._sessions):
            session.close()
        self._passes.close()
        self._buffers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _batches(counts: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Cut requests with these token counts into batches of (index of the request, first token, end)."""
    batch: list[tuple[int, int, int]] = []
    room = ROWS[-1]
    for index, count in enumerate(counts):
        begin = 0
        while begin < count:
            end = min(count, begin + room)
            batch.append((index, begin, end))
            room -= end - begin
            begin = end
            if room == 0 or len(batch) == SEQUENCES:
                yield batch
                batch, room = [], ROWS[-1]
    if batch:
        yield batch


def _chat_template(file: GGUFFile, tokenizer: Tokenizer, trusted: bool) -> ChatTemplate | None:
    source = file.get("tokenizer.chat_template", str, None)
    if source is None:
        return None
    bos, eos = ("" if i is None else tokenizer.tokens[i] for i in (tokenizer.bos, tokenizer.eos))
    return ChatTemplate(source, bos=bos, eos=eos, trusted=trusted)
