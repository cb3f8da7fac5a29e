"""Texts that obey a grammar or a JSON schema, by llguidance: the extra ``wasmetal[grammar]``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from gguf import TokenType
from numpy.typing import NDArray

from wasmetal.errors import ModelError
from wasmetal.models.lm.tokenizer import Tokenizer

MAX_GRAMMAR = 1 << 14
"""Characters of a grammar or schema from somebody who is not trusted: parsing so many is not interrupted, and takes up
to two seconds."""
JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""How JSON is written, whatever a schema says under ``x-guidance``. Where white space is free, a model may write
nothing else; ``lenient`` would leave out what llguidance cannot hold a text to."""
_tokenizers: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()


class Grammar:
    """Which tokens may come next, so that the text obeys a grammar. For one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        """``source``: what one of the functions below gives, or Lark.

        Raises ModelError if the grammar is wrong, no text obeys it, the model has no token that ends a text, or
        llguidance is not installed.
        """
        llguidance = _llguidance()
        with _refusals():
            self._matcher = llguidance.LLMatcher(_known(tokenizer), source, log_level=0)
            error = self._matcher.get_error()
        if error:
            raise ModelError(f"the grammar is wrong: {_line(error)}")
        self._size = tokenizer.vocab_size
        if not self.mask().any():
            raise ModelError("the model can write no text that obeys the grammar")

    def copy(self) -> Self:
        """Another one, in the same state."""
        copy = object.__new__(type(self))
        copy._matcher, copy._size = self._matcher.deep_copy(), self._size
        return copy

    def mask(self) -> NDArray[np.int32]:
        """The tokens that may come next, a bit for each of the vocabulary, the lowest of a word first: i32
        [ceil(vocab_size / 32)]. None may come once the grammar takes too much work."""
        mask = np.zeros(-(-self._size // 32), np.int32)
        with _refusals():
            if not self._matcher.is_error():
                self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if self._matcher.is_error():  # then the mask has the ends of texts
                mask[:] = 0
        return mask

    def allowed(self) -> NDArray[np.bool_]:
        """The same as truth values [vocab_size]."""
        bits = np.unpackbits(self.mask().view(np.uint8), bitorder="little")
        return bits[: self._size].astype(np.bool_)

    def take(self, token: int) -> bool:
        """This one has come. False if it may not, or the grammar takes too much work; then no other may come."""
        with _refusals():
            return bool(self._matcher.consume_token(token))

    @property
    def complete(self) -> bool:
        """Whether the text obeys the grammar as it is."""
        return not self._matcher.is_error() and bool(self._matcher.is_accepting())


def json_schema(schema: str | Mapping[str, Any]) -> str:
    """The grammar of JSON that obeys a schema. Raises ModelError."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    with _refusals():
        return str(_llguidance().LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS))


def gbnf_or_lark(text: str) -> str:
    """The grammar that is written so. Raises ModelError."""
    with _refusals():
        return str(_llguidance().grammar_from("gbnf", text))


class _Tokens:
    """A vocabulary as llguidance takes it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.end_of_generation)
        self.bos_token_id = tokenizer.bos
        self.tokens = list(tokenizer.pieces())
        self.special_token_ids = tokenizer.ids_of_type(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)

    def __call__(self, text: bytes | str) -> list[int]:
        data = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(data, parse_special=False, add_bos=False)


def installed() -> bool:
    """Whether llguidance is."""
    return find_spec("llguidance") is not None


def _llguidance() -> Any:
    if not installed():
        raise ModelError("for grammars, pip install 'wasmetal[grammar]'")
    import llguidance  # noqa: PLC0415 (an extra)

    return llguidance


def _known(tokenizer: Tokenizer) -> Any:
    """The vocabulary in llguidance's form, which takes a moment to make, once for each model."""
    if not tokenizer.end_of_generation:
        raise ModelError("the model has no token that ends a text")
    if tokenizer not in _tokenizers:
        ends = sorted(tokenizer.end_of_generation)
        _tokenizers[tokenizer] = _llguidance().LLTokenizer(_Tokens(tokenizer), eos_token=ends)
    return _tokenizers[tokenizer]


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the package raises into ModelError: Rust's panics, too, which are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, ModelError):
        raise
    except BaseException as error:
        raise ModelError(f"the grammar cannot be used: {_line(str(error))}") from None
