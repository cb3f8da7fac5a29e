"""Texts that obey a grammar or a JSON schema, by llguidance: the extra ``wasmetal[grammar]``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from gguf import TokenType
from numpy.typing import NDArray

from wasmetal.models.lm.tokenizer import Tokenizer
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.ggml.options import GgmlOptions

MAX_GRAMMAR = 1 << 14
"""Characters of a grammar or schema: parsing them is not interrupted, and takes up to two seconds for so many."""
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written. Where white space is free, a model may write nothing else."""
_tokenizers: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()


class Grammar:
    """Which tokens may come next, so that the text obeys a grammar."""

    def __init__(self, tokenizer: Tokenizer, options: GgmlOptions) -> None:
        """Raises NnRefusal if the grammar, or else the JSON schema, is wrong, or llguidance is not installed."""
        if not find_spec("llguidance"):
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "for grammars, pip install 'wasmetal[grammar]'")
        import llguidance  # noqa: PLC0415 (an extra)

        if len(options.grammar) + len(options.json_schema) > MAX_GRAMMAR:
            raise NnRefusal(NnErrno.TOO_LARGE, f"a grammar is too long; at most {MAX_GRAMMAR} characters are taken")
        with _refusals():
            if options.grammar:
                grammar = llguidance.grammar_from("gbnf", options.grammar)
            else:
                grammar = llguidance.LLMatcher.grammar_from_json_schema(options.json_schema, defaults=_JSON)
            self._matcher = llguidance.LLMatcher(_known(tokenizer), grammar, log_level=0)
            error = self._matcher.get_error()
        if error:
            raise invalid(f"the grammar is wrong: {' '.join(error.split())[:300]}")
        self._size = tokenizer.vocab_size
        self._mask = np.zeros(-(-self._size // 32), np.int32)

    def allowed(self) -> NDArray[np.bool_]:
        """Of each token of the vocabulary [vocab_size]; none once the grammar takes too much work."""
        self._mask[:] = 0
        with _refusals():
            if not self._matcher.is_error():
                self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return bits[: self._size].astype(np.bool_)

    def take(self, token: int) -> None:
        """This one has come."""
        with _refusals():
            self._matcher.consume_token(token)


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


def _known(tokenizer: Tokenizer) -> Any:
    """The vocabulary in llguidance's form, which takes a moment to make, once for each model."""
    import llguidance  # noqa: PLC0415 (an extra)

    if not tokenizer.end_of_generation:
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "the model has no token that ends a text")
    if tokenizer not in _tokenizers:
        ends = sorted(tokenizer.end_of_generation)
        _tokenizers[tokenizer] = llguidance.LLTokenizer(_Tokens(tokenizer), eos_token=ends)
    return _tokenizers[tokenizer]


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the package raises into NnRefusal: Rust's panics, too, which are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, NnRefusal):
        raise
    except BaseException as error:
        raise invalid(f"the grammar cannot be used: {' '.join(str(error).split())[:300]}") from None
