"""Texts that a language model goes on with: one session for each context, and answers to its prompts."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from wasmetal.models.lm.model import Model
from wasmetal.models.lm.quota import Holder
from wasmetal.models.lm.session import Session
from wasmetal.nn.backend import Services
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.ggml.choosing import Chooser, Constraint
from wasmetal.nn.ggml.grammar import Grammar
from wasmetal.nn.ggml.options import GgmlOptions
from wasmetal.nn.options import parse
from wasmetal.nn.tensor import NnTensor

PROMPT, METADATA = 0, 1
"""Inputs; the outputs of the same numbers are the text, and what is known of it."""
MAX_PROMPT = 1 << 18
"""Bytes of a prompt: tokenizing takes hundreds of bytes, and microseconds, for each, and is not interrupted."""
SPARE = 4
"""Tokens of the context that a prompt must leave free, as in WasmEdge."""


class TextContext:
    """A conversation with a language model, as its caller keeps it: each prompt is a whole one."""

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
        if index == METADATA:
            self._options = self._options.updated(parse(tensor.text))
        elif index != PROMPT:
            raise invalid(f"input {index}; a language model has a prompt, 0, and options, 1")
        else:
            self._prompt = None
            self._prompt = self._tokenize(tensor.text)
            self._forget()

    def compute(self) -> None:
        """Make the answer to its end."""
        self._forget()
        with closing(self._generate()) as pieces:
            for piece in pieces:
                if self._options.stream_stdout:
                    self._services.write(piece)

    def compute_single(self) -> None:
        """Make the next token of an answer."""
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
        return np.frombuffer(bytes(self._answer) if _checked(index) == PROMPT else self._metadata(), np.uint8)

    def output_single(self, index: int) -> NDArray[np.uint8]:
        """The token's text, or what is known of the answer as JSON."""
        return np.frombuffer(self._piece if _checked(index) == PROMPT else self._metadata(), np.uint8)

    def bind_input(self, index: int, tensor: NnTensor) -> None:
        """Refused: texts are not tensors."""
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "the texts of a language model cannot be bound")

    def bind_output(self, index: int, tensor: NnTensor) -> None:
        """Refused."""
        self.bind_input(index, tensor)

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
        if self._prompt is None:
            raise invalid("no prompt was set")
        if self._options.embedding:
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "a language model gives no embeddings here")
        options, tokenizer = self._options, self._model.tokenizer
        size = min(options.ctx_size, self._model.context_length) if options.ctx_size > 0 else self._model.context_length
        if len(self._prompt) > size - SPARE:
            raise NnRefusal(NnErrno.PROMPT_TOO_LONG, f"a prompt of {len(self._prompt)} tokens, a context of {size}")
        with closing(Chooser(options, self._model, self._services, self._constraint())) as chooser:
            for token in self._choose(chooser, self._prompt, size):
                piece = tokenizer.pieces()[token]
                self._answer += piece
                self._answer_tokens += 1
                yield piece
                if self._answer_tokens == options.n_predict or _ends(self._answer, piece, options.reverse_prompt):
                    return

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

    def _constraint(self) -> Constraint | None:
        if not (self._options.grammar or self._options.json_schema):
            return None
        return Grammar(self._model.tokenizer, self._options)

    def _tokenize(self, data: bytes) -> list[int]:
        if len(data) > MAX_PROMPT:
            raise NnRefusal(NnErrno.TOO_LARGE, f"a prompt of {len(data)} bytes; at most {MAX_PROMPT} are taken")
        tokenizer = self._model.tokenizer
        tokens = tokenizer.encode(data.decode(errors="replace"))
        if tokens[:2] == [tokenizer.bos] * 2:  # the template has written it, too
            del tokens[0]
        if not tokens:
            raise invalid("the prompt is empty")
        return tokens

    def _metadata(self) -> bytes:
        known = {
            "input_tokens": len(self._prompt or ()),
            "llama_build_number": 0,
            "llama_commit": f"wasmetal-{metadata.version('wasmetal')}",
            "output_tokens": self._answer_tokens,
        }
        return json.dumps(known).encode()

    def _forget(self) -> None:
        """Begin with no answer."""
        if self._pieces:
            self._pieces.close()
        self._pieces, self._piece = None, b""
        self._answer, self._answer_tokens = bytearray(), 0


def _checked(index: int) -> int:
    if index not in (PROMPT, METADATA):
        raise invalid(f"output {index}; a language model has a text, 0, and JSON about it, 1")
    return index


def _common(one: list[int], other: list[int]) -> int:
    """The length of the beginning that both have."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _ends(text: bytearray, piece: bytes, reverse_prompt: str) -> bool:
    """Whether the last piece has completed the text that ends an answer."""
    ending = reverse_prompt.encode(errors="replace")
    return bool(ending) and ending in text[-(len(ending) + len(piece)) :]
