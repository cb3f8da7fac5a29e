"""Texts that a language model goes on with: one session for each context, and answers to its prompts."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from wasmetal.models.lm.heads import MOST_ROWS
from wasmetal.models.lm.model import Model
from wasmetal.models.lm.quota import Holder
from wasmetal.models.lm.session import Session
from wasmetal.models.lm.states import State
from wasmetal.nn.backend import Services
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.ggml.choosing import Chooser
from wasmetal.nn.ggml.grammar import constraint
from wasmetal.nn.ggml.options import GgmlOptions
from wasmetal.nn.ggml.prompt import INPUTS, METADATA, OUTPUTS, PROMPT, checked, known, text_of, vector_of
from wasmetal.nn.options import parse
from wasmetal.nn.partial import Unbound
from wasmetal.nn.tensor import NnTensor, TensorType

SPARE = 4
"""Tokens of the context that a prompt must leave free, as in WasmEdge."""


class TextContext(Unbound):
    """A conversation with a language model, as its caller keeps it: each prompt is a whole one."""

    NOT_BOUND = "the texts of a language model cannot be bound"
    inputs, outputs = INPUTS, OUTPUTS

    def __init__(self, model: Model, holder: Holder, services: Services, options: GgmlOptions) -> None:
        self._model = model
        self._services = services
        self._options = options
        self._session: Session | None = model.session(holder)
        self._tokens: list[int] = []
        """Those whose keys and values the session has."""
        self._prompt: list[int] | None = None
        self._answer = bytearray()
        self._answer_tokens = 0
        self._piece = b""
        self._pieces: Generator[bytes] | None = None
        """What is left of an answer that is made token by token."""

    def set_input(self, index: int, tensor: NnTensor) -> None:
        """Take a prompt, which ends the answer that was being made; or options, for the next answer."""
        if checked(index) == METADATA:
            self._options = self._options.updated(parse(tensor.text))
        else:
            text = text_of(tensor)
            self._prompt = None
            self._prompt = self._tokenize(text)
            self._forget()

    def compute(self) -> None:
        """Make the answer to its end, or the prompt's vector."""
        self._forget()
        if self._options.embedding:
            self._answer += vector_of(self._mean())
            return
        with closing(self._generate()) as pieces:
            for piece in pieces:
                if self._options.stream_stdout:
                    self._services.write(piece)

    def output_type(self, index: int) -> tuple[TensorType, tuple[int, ...]]:
        """Bytes."""
        return TensorType.U8, (self.output(index).size,)

    def compute_single(self) -> None:
        """Make the next token of an answer."""
        if self._options.embedding:
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "a vector is no text that comes token by token")
        if self._pieces is None:
            self._forget()
            self._pieces = self._generate()
        self._piece = b""
        piece = next(self._pieces, None)
        if piece is None:
            raise NnRefusal(NnErrno.END_OF_SEQUENCE, "the text has ended")
        self._piece = piece

    def fini_single(self) -> None:
        """End the answer that is made token by token."""
        self._forget()

    def output(self, index: int) -> NDArray[np.uint8]:
        """The answer, or what is known of it as JSON."""
        return np.frombuffer(bytes(self._answer) if checked(index) == PROMPT else self._known(), np.uint8)

    def output_single(self, index: int) -> NDArray[np.uint8]:
        """The token's text, or what is known of the answer as JSON."""
        return np.frombuffer(self._piece if checked(index) == PROMPT else self._known(), np.uint8)

    def release(self) -> None:
        """Release the session."""
        if self._pieces:
            self._pieces.close()
            self._pieces = None
        if self._session:
            self._session.close()
            self._session = None
            self._model.reclaim()

    close = release

    def _generate(self) -> Generator[bytes]:
        """The pieces of an answer to the prompt, which are added to it."""
        options, tokenizer = self._options, self._model.tokenizer
        prompt, size = self._checked_prompt()
        with closing(Chooser(options, self._model, self._services, constraint(tokenizer, options))) as chooser:
            for token in self._choose(chooser, prompt, size):
                piece = tokenizer.pieces()[token]
                self._answer += piece
                self._answer_tokens += 1
                yield piece
                if self._answer_tokens == options.n_predict or _ends(self._answer, piece, options.reverse_prompt):
                    return

    def _checked_prompt(self) -> tuple[list[int], int]:
        """The prompt, and the size of its context. Raises NnRefusal."""
        if self._prompt is None:
            raise invalid("no prompt was set")
        size, given = self._model.context_length, self._options.ctx_size
        if given > 0:
            size = min(size, given)
        if len(self._prompt) > size - SPARE:
            raise NnRefusal(NnErrno.PROMPT_TOO_LONG, f"a prompt of {len(self._prompt)} tokens, a context of {size}")
        return self._prompt, size

    def _mean(self) -> NDArray[np.float64]:
        """The mean of the states of the prompt's tokens, as llama.cpp pools them."""
        prompt, _ = self._checked_prompt()
        session = self._session
        assert session
        session.truncate(0)
        self._tokens = []
        total = np.zeros(self._model.config.embedding_length)
        for begin in range(0, len(prompt), MOST_ROWS):
            tokens = prompt[begin : begin + MOST_ROWS]
            states = [State() for _ in tokens]
            self._services.drive(session.steps(tokens, states))
            self._tokens += tokens
            total += np.sum([state.values for state in states], axis=0, dtype=np.float64)
        return total / len(prompt)

    def _choose(self, chooser: Chooser, prompt: list[int], size: int) -> Iterator[int]:
        """Tokens after a prompt, up to one that ends the text. Raises NnRefusal(CONTEXT_FULL)."""
        session = self._session
        assert session
        if self._options.n_predict == 0:
            return
        kept = _common(self._tokens, prompt[:-1])
        session.truncate(kept)
        del self._tokens[kept:]
        tokens = prompt[kept:]
        while True:
            if session.length + len(tokens) > size:
                raise NnRefusal(NnErrno.CONTEXT_FULL, f"the context of {size} tokens is full")
            self._services.drive(session.steps(tokens, chooser.wanted))
            self._tokens += tokens
            token = chooser.choose(self._tokens)
            if token is None or token in self._model.tokenizer.end_of_generation:
                return
            yield token
            tokens = [token]

    def _tokenize(self, text: str) -> list[int]:
        tokenizer = self._model.tokenizer
        tokens = tokenizer.encode(text)
        if tokens[:2] == [tokenizer.bos] * 2:  # the template has written it, too
            del tokens[0]
        if not tokens:
            raise invalid("the prompt is empty")
        return tokens

    def _known(self) -> bytes:
        return known(len(self._prompt or ()), self._answer_tokens)

    def _forget(self) -> None:
        """Begin with no answer."""
        if self._pieces:
            self._pieces.close()
        self._pieces, self._piece = None, b""
        self._answer, self._answer_tokens = bytearray(), 0


def _common(one: list[int], other: list[int]) -> int:
    """The length of the beginning that both have."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _ends(text: bytearray, piece: bytes, reverse_prompt: str) -> bool:
    """Whether the last piece has completed the text that ends an answer."""
    ending = reverse_prompt.encode(errors="replace")
    return bool(ending) and ending in text[-(len(ending) + len(piece)) :]
