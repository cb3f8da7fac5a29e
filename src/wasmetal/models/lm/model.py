"""A model on a device, ready for sessions."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import CommandList, Device, MemoryKind
from wasmetal.errors import ModelError
from wasmetal.models.architectures.llama import Inputs, Llama, LlamaConfig
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files import store
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.lm.chat_template import ChatTemplate
from wasmetal.models.lm.kv_cache import PAGE_SIZE, KVCache
from wasmetal.models.lm.session import Session
from wasmetal.models.lm.tokenizer import Tokenizer
from wasmetal.ops import DType, Recorder, Tensor

DEFAULT_CONTEXT = 4096
"""Tokens of context where none are asked for, unless the model was trained on fewer."""
CONTEXTS = 2
"""The key-value cache has room for so many whole contexts, shared by all sessions."""
ROWS = (1, 64, 512)
"""Shape classes: the forward pass is recorded once for each, and runs in the smallest that the tokens fit."""


def load_model(source: str | Path, device: Device, *, context: int | None = None) -> Model:
    """Load a model onto a device: a known model's name, or a path to a GGUF file.

    ``context`` is the number of tokens that a session may have, by default DEFAULT_CONTEXT or what the model was
    trained on, if less. Raises ModelError for a file that cannot be used, OutOfDeviceMemoryError for one too large.
    """
    path = store.resolve(source)
    name = str(source) if source in store.CATALOG else path.stem
    return Model(GGUFFile(path), name, device, context)


class Model:
    """Weights, tokenizer and cache. Use as a context manager, or call :meth:`close`. Safe to use from several threads.

    ``chat_template`` is None where the file has none.
    """

    def __init__(self, file: GGUFFile, name: str, device: Device, context: int | None = None):
        architecture = file.require("general.architecture", str)
        if architecture != "llama":
            raise file.error(f"the architecture {architecture!r} is not supported; supported: llama")
        self.device = device
        self.name = name
        self.config = c = LlamaConfig.from_gguf(file)
        self.tokenizer = Tokenizer(file)
        self.chat_template = _chat_template(file, self.tokenizer)
        self.vocab_size = c.vocab_size
        self.context_length = min(c.context_length, DEFAULT_CONTEXT) if context is None else context
        if not 1 <= self.context_length <= c.context_length:
            raise file.error(f"a context of {context} tokens; 1 to {c.context_length} are supported")
        self.digest = file.digest()
        """32 bytes that tell this model from others."""
        self.lock = threading.RLock()

        self._buffers = BufferGroup(device)
        try:
            self._network = Llama(file, c, self._buffers, self.context_length, ROWS[-1])
            pages = -(-self.context_length // PAGE_SIZE)
            self.cache = KVCache(self._buffers, c.block_count, c.head_count_kv, c.head_dim, CONTEXTS * pages)
            self._inputs = _InputBuffer(self._buffers, ROWS[-1], pages)
        except BaseException:
            self._buffers.close()
            raise
        self._bodies: dict[int, CommandList] = {}
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._closed = False

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the device reads for each decoded token."""
        return self._network.weight_bytes

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

    def run(self, tokens: Sequence[int], position: int, pages: Sequence[int], head: CommandList | None) -> float:
        """Run the forward pass over tokens that stand at ``position`` and after it, and then the ``head``.

        One submission, or several where there are more tokens than the largest shape class takes. For sessions, which
        hold the lock. Returns the seconds that the device spent.
        """
        seconds = 0.0
        for begin in range(0, len(tokens), ROWS[-1]):
            some = tokens[begin : begin + ROWS[-1]]
            self._inputs.set(some, position + begin, pages)
            lists = [self._body(next(rows for rows in ROWS if rows >= len(some)))]
            if head and begin + len(some) == len(tokens):
                lists.append(head)
            seconds += self.device.submit(lists).wait()
        return seconds

    def record_head(self, logits: Tensor) -> CommandList:
        """A command list that writes the last token's logits to a tensor. For sessions."""
        commands = self.device.record()
        self._network.head(Recorder(self.device.info, commands), self._inputs.of(1), logits)
        commands.finish()
        return commands

    def close(self) -> None:
        """Close the sessions and give back the device's memory. Idempotent."""
        self._closed = True
        for session in list(self._sessions):
            session.close()
        for commands in self._bodies.values():
            commands.close()
        self._bodies = {}
        self._buffers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _body(self, rows: int) -> CommandList:
        if rows not in self._bodies:
            commands = self.device.record()
            self._network.body(Recorder(self.device.info, commands), self._inputs.of(rows), self.cache)
            commands.finish()
            self._bodies[rows] = commands
        return self._bodies[rows]


class _InputBuffer:
    """The shared buffer that the host writes before each submission: step, page table, token ids."""

    def __init__(self, buffers: BufferGroup, rows: int, pages: int):
        step, table = 0, 64
        ids = table + -(-pages * 4 // 64) * 64
        buffer = buffers.allocate(ids + rows * 4, MemoryKind.SHARED)
        self._step = Tensor(buffer, step, DType.I32, (4,))
        self._page_table = Tensor(buffer, table, DType.I32, (pages,))
        self._ids = Tensor(buffer, ids, DType.I32, (rows,))
        words: NDArray[np.int32] = buffer.view().view(np.int32)
        self._step_words, self._table_words, self._id_words = words[:4], words[table // 4 :], words[ids // 4 :]

    def of(self, rows: int) -> Inputs:
        """The tensors, for a shape class."""
        return Inputs(self._step, self._ids.rows(0, rows), self._page_table)

    def set(self, tokens: Sequence[int], position: int, pages: Sequence[int]) -> None:
        """Write what the next submission is to compute."""
        count = len(tokens)
        self._id_words[:count] = tokens
        self._table_words[: len(pages)] = pages
        self._step_words[:] = (count, position, count - 1, 0)


def _chat_template(file: GGUFFile, tokenizer: Tokenizer) -> ChatTemplate | None:
    source = file.get("tokenizer.chat_template", str, None)
    if source is None:
        return None
    bos, eos = ("" if i is None else tokenizer.tokens[i] for i in (tokenizer.bos, tokenizer.eos))
    return ChatTemplate(source, bos=bos, eos=eos)
