"""Embedding models: texts to vectors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wasmetal.closing import Closing
from wasmetal.counters import Counters
from wasmetal.device.base import CommandList, Device, MemoryKind
from wasmetal.errors import ModelError, setting_up
from wasmetal.forked import Origin
from wasmetal.memory.trim import trim
from wasmetal.models.architectures.bert import Bert, EncoderInputs
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files import store
from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.hf_folder import open_model_file
from wasmetal.models.lm.tokenizer import Tokenizer
from wasmetal.ops import DType, Recorder, Tensor, batch_shape, sequences_shape

ROWS = (64, 512)
"""Shape classes: a pass is recorded once for each; a batch takes the smallest that its rows fit. The largest has room
for the longest text."""
TEXTS = 64
"""Most texts in a batch."""
PAGE_SIZE = 32
"""Positions in a page of keys and values."""
POOLINGS = {1: "mean", 2: "cls"}
"""How a text's vector is made of its rows', by llama.cpp's numbers: their mean, or the first."""


def load_embedder(source: str | Path, device: Device, *, charge: Callable[[int], None] | None = None) -> Embedder:
    """Load an embedding model onto a device: the name of one that was pulled, or a path to a GGUF file of ``bert``
    or to such a folder of Hugging Face.

    ``charge``: as for :func:`load_model`. Raises ModelError if the file cannot be used, OutOfDeviceMemoryError if it is
    too large.
    """
    with setting_up(f"load {source}", ModelError):
        path = store.resolve(source)
        embedder = Embedder(open_model_file(path), store.name_of(source, path), device, charge)
        trim()
        return embedder


class Embedder(Closing):
    """An embedding model on a device. Use as a context manager, or call :meth:`close`. Safe to use from several
    threads, one at a time."""

    def __init__(self, file: ModelFile, name: str, device: Device, charge: Callable[[int], None] | None = None) -> None:
        architecture = file.require("general.architecture", str)
        if architecture != Bert.name:
            raise file.error(
                f"the architecture {architecture!r} is not supported for embeddings; supported: {Bert.name}"
            )
        self._network = network = Bert(file)
        self.name = name
        self.device = device
        self.tokenizer = Tokenizer(file)
        self.dimension = network.width
        """Elements of a vector."""
        self.context_length = network.context_length
        """Most tokens of a text, those that begin and end it included."""
        pooling = file.get("bert.pooling_type", int, 1)
        if pooling not in POOLINGS:
            raise file.error(f"bert.pooling_type is {pooling}; supported: 1 (mean), 2 (cls)")
        self.pooling = POOLINGS[pooling]
        """"mean" or "cls"."""
        self.normalized = file.get("embedding.normalized", bool, True)
        """Whether vectors are scaled to length 1."""
        self._rows = ROWS[0], max(ROWS[1], self.context_length)
        self._origin = Origin(f"the model {name}")
        self._lock = threading.Lock()
        self._lists: dict[int, CommandList] = {}
        self._closed = False
        self._buffers = BufferGroup(device, charge)
        try:
            network.load(self._buffers, self._rows[-1], self._rows[-1] // PAGE_SIZE + TEXTS, PAGE_SIZE)
            shapes = {
                "ids": (self._rows[-1],),
                "positions": (self._rows[-1],),
                "own": batch_shape(self._rows[-1]),
                "last": batch_shape(self._rows[-1]),
                "sequences": sequences_shape(TEXTS, -(-self.context_length // PAGE_SIZE)),
            }
            self._inputs = EncoderInputs(**{name: self._integers(*shape) for name, shape in shapes.items()})
        except BaseException:
            self._buffers.close()
            raise

    @property
    def counters(self) -> Counters:
        """Bytes that loading the model wrapped and loaded."""
        return self._buffers.counters

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> NDArray[np.float32]:
        """The texts' vectors, float32 [texts, dimension], each of length 1 if the model is ``normalized``.

        Control tokens written out in a text stay text. ``truncate``: of a text with more than ``context_length`` tokens
        take the first. Raises ModelError if a text is longer, or no valid Unicode, or the model is closed.
        """
        self._origin.check()
        tokens = [self._tokens(text, number, truncate) for number, text in enumerate(texts)]
        vectors = np.zeros((len(tokens), self.dimension), np.float32)
        for batch in _batches([len(each) for each in tokens], self._rows[-1]):
            with self._lock:
                if self._closed:
                    raise ModelError(f"the model {self.name} is closed")
                rows = self._write([tokens[number] for number in batch])
                self.device.submit([self._list(rows)]).wait()
                states, row = self._network.states.numpy(), 0
                for number in batch:
                    end = row + len(tokens[number])
                    of = states[row] if self.pooling == "cls" else states[row:end].mean(axis=0, dtype=np.float64)
                    vectors[number] = of / max(float(np.linalg.norm(of)), 1e-12) if self.normalized else of
                    row = end
        return vectors

    def count(self, text: str) -> int:
        """How many tokens a text has, those that begin and end it included. Raises ModelError as :meth:`embed` does."""
        return len(self._tokens(text, 0, False))

    def close(self) -> None:
        """Release the device's memory. Idempotent; nothing happens in a process forked since."""
        if not self._origin.here:
            return
        with self._lock:
            self._closed = True
            for commands in self._lists.values():
                commands.close()
            self._lists = {}
            self._buffers.close()

    def _tokens(self, text: str, number: int, truncate: bool) -> list[int]:
        """A text's tokens, with those that begin and end it."""
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text, parse_special=False)
        end = [tokenizer.eos] if tokenizer.add_eos and tokenizer.eos is not None else []
        room = self.context_length - len(end)
        if len(ids) > room and not truncate:
            raise ModelError(
                f"text {number} has {len(ids) + len(end)} tokens; {self.name} takes at most {self.context_length} "
                "(truncate=True, --truncate cuts it off)"
            )
        ids = ids[:room] + end
        if not ids:
            raise ModelError(f"text {number} has no tokens")
        return ids

    def _write(self, texts: Sequence[Sequence[int]]) -> int:
        """Write the inputs of the next submission. Returns how many rows it has."""
        ids, positions, own, last, sequences = (
            getattr(self._inputs, name).numpy() for name in ("ids", "positions", "own", "last", "sequences")
        )
        row = page = 0
        for number, text in enumerate(texts):
            count, pages = len(text), -(-len(text) // PAGE_SIZE)
            here, below = slice(row, row + count), slice(1 + row, 1 + row + count)
            ids[here] = text
            positions[here] = own[below, 0] = range(count)
            last[below, 0] = count - 1
            own[below, 1] = last[below, 1] = number
            sequences[number, 0] = count
            sequences[number, 1 : 1 + pages] = range(page, page + pages)
            row, page = row + count, page + pages
        own[0, 0] = last[0, 0] = row
        return row

    def _list(self, rows: int) -> CommandList:
        """The list that computes a batch of so many rows."""
        fitting = next(size for size in self._rows if size >= rows)
        if fitting not in self._lists:
            i = self._inputs
            inputs = EncoderInputs(
                i.ids.rows(0, fitting),
                i.positions.rows(0, fitting),
                i.own.rows(0, 1 + fitting),
                i.last.rows(0, 1 + fitting),
                i.sequences,
            )
            commands = self.device.record()
            self._network.body(Recorder(self.device.info, commands), inputs)
            commands.finish()
            self._lists[fitting] = commands
        return self._lists[fitting]

    def _integers(self, *shape: int) -> Tensor:
        """A new tensor in memory that host and device share."""
        buffer = self._buffers.allocate(DType.I32.row_bytes(int(np.prod(shape))), MemoryKind.SHARED)
        return Tensor(buffer, 0, DType.I32, shape)


def _batches(counts: Sequence[int], rows: int) -> Iterator[list[int]]:
    """The numbers of the texts with these token counts, in batches of at most ``rows`` rows and TEXTS texts."""
    batch: list[int] = []
    room = rows
    for number, count in enumerate(counts):
        if batch and (count > room or len(batch) == TEXTS):
            yield batch
            batch, room = [], rows
        batch.append(number)
        room -= count
    if batch:
        yield batch
