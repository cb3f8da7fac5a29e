"""Texts to vectors, with an embedding model."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from wasmetal.models.embedder import Embedder
from wasmetal.nn.backend import Config, Context, Services
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.ggml.options import GgmlOptions
from wasmetal.nn.ggml.prompt import INPUTS, OUTPUTS, PROMPT, checked, known, text_of, vector_of
from wasmetal.nn.options import parse
from wasmetal.nn.partial import AtOnce, Unbound
from wasmetal.nn.tensor import NnTensor, TensorType


class EmbeddingGraph:
    """An embedding model, which the backend keeps."""

    holds_tensors = False

    def __init__(self, model: Embedder, services: Services, own: ExitStack | None = None) -> None:
        """``own``: what releases the model, if it is the graph's own."""
        self._own = own
        self._model = model
        self._services = services

    def configure(self, config: Config) -> None:
        """Check options; none of them changes a vector. Raises NnRefusal."""
        GgmlOptions().updated(config)

    def context(self) -> Context:
        """A new context."""
        return EmbeddingContext(self._model, self._services)

    def close(self) -> None:
        """Release the model, unless the backend keeps it."""
        if self._own:
            self._own.close()


class EmbeddingContext(AtOnce, Unbound):
    """A text and its vector."""

    NO_PIECES = "a vector is no text that comes token by token"
    NOT_BOUND = "texts cannot be bound"
    inputs, outputs = INPUTS, OUTPUTS

    def __init__(self, model: Embedder, services: Services) -> None:
        self._model = model
        self._services = services
        self._text: str | None = None
        self._tokens = 0
        self._result = b""

    def set_input(self, index: int, tensor: NnTensor) -> None:
        """Take a text, or options, which are checked."""
        if checked(index) == PROMPT:
            text, tokenizer = text_of(tensor), self._model.tokenizer
            self._tokens = len(tokenizer.encode(text, parse_special=False)) + tokenizer.add_eos
            self._text, self._result = text, b""
        else:
            GgmlOptions().updated(parse(tensor.text))

    def compute(self) -> None:
        """Make the vector: of length 1, as JSON."""
        if self._text is None:
            raise invalid("no text was set")
        if self._tokens > self._model.context_length:
            most = self._model.context_length
            raise NnRefusal(NnErrno.PROMPT_TOO_LONG, f"a text of {self._tokens} tokens; the model takes {most}")
        with self._services.stoppable(lambda: None):  # it does not take long
            vector = self._model.embed([self._text])[0].astype(np.float64)
        self._result = vector_of(vector)

    def output(self, index: int) -> NDArray[np.uint8]:
        """The vector, or what is known of it, as JSON."""
        return np.frombuffer(self._result if checked(index) == PROMPT else known(self._tokens, 0), np.uint8)

    def output_type(self, index: int) -> tuple[TensorType, tuple[int, ...]]:
        """Bytes."""
        return TensorType.U8, (self.output(index).size,)

    def release(self) -> None:
        """Nothing: the model is the backend's."""

    close = release
