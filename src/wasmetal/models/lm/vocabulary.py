"""The vocabulary in a model file: tokens, their bytes and their merges, checked before a tokenizer is built of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from gguf import TokenType

from wasmetal.models.files.model_file import ModelFile

MAX_TOKENS = 1 << 19
"""Tokens of a vocabulary; the largest in use have about 260,000."""
MAX_TOKEN = 1024
"""Bytes of a token. The longest in use are runs of spaces, dashes and the like."""
MAX_ADDED = 1 << 20
"""Bytes of all tokens that are recognized in a text before it is split into words, such as control tokens."""
MAX_MERGES = 32 << 20
"""Bytes of all merges: 64 for each token of the largest vocabulary."""
MAX_SQUARES = 1 << 26
"""Sum of the squares of the lengths, in characters, of a SentencePiece vocabulary: finding its merges takes time
in proportion. 260,000 tokens may have 16 characters on average."""

SPACE = "▁"
"""SentencePiece's stand-in for a space."""
VERBATIM = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
"""Types of the tokens that stand for their own spelling."""

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """Tokens by id. Raises ModelError if they are inconsistent, or too many or too long."""

    def __init__(self, file: ModelFile, sentencepiece: bool) -> None:
        self._file = file
        self._sentencepiece = sentencepiece
        self.tokens: list[str] = file.require("tokenizer.ggml.tokens", list)
        """Every token as spelled in the file."""
        if len(self.tokens) > MAX_TOKENS:
            raise file.error(f"{len(self.tokens)} tokens; at most {MAX_TOKENS} are supported")
        self.types = self._read_types()
        self.ids = {token: i for i, token in enumerate(self.tokens) if token}
        """Every token's id, by its spelling."""
        if not self.ids or len(self.ids) != sum(map(bool, self.tokens)):
            raise file.error("tokenizer.ggml.tokens is empty or contains a token twice")
        # A character has up to four bytes.
        longest = max((len(token.encode()) for token in self.tokens if 4 * len(token) > MAX_TOKEN), default=0)
        if longest > MAX_TOKEN:
            raise file.error(f"a token of {longest} bytes; at most {MAX_TOKEN} are supported")
        if sentencepiece and (wrong := [token for token in self.of_type(TokenType.BYTE) if not _BYTE.fullmatch(token)]):
            raise file.error(f"{wrong[0]!r} is no token for a byte, such as <0x0A>")
        if (added := sum(len(token.encode()) for token in self.of_type(*VERBATIM))) > MAX_ADDED:
            raise file.error(f"{added} bytes of control and user-defined tokens; at most {MAX_ADDED} are supported")

    def token_id(self, name: str) -> int | None:
        """The id that the file gives the token of this role ("bos", "eos", …), if it names one. Raises ModelError."""
        key = f"tokenizer.ggml.{name}_token_id"
        i = self._file.get(key, int, None)
        if i is not None and not 0 <= i < len(self.tokens):
            raise self._file.error(f"{key} is {i}; the vocabulary has {len(self.tokens)} tokens")
        return i

    def listed_merges(self) -> list[tuple[str, str]]:
        """The merges in the file, the first to be applied first. Raises ModelError."""
        lines = self._file.require("tokenizer.ggml.merges", list)
        if (nbytes := sum(map(len, lines))) > MAX_MERGES:
            raise self._file.error(f"{nbytes} bytes of merges; at most {MAX_MERGES} are supported")
        merges = []
        for line in lines:
            left, _, right = line.partition(" ")
            if not (left in self.ids and right in self.ids and left + right in self.ids):
                raise self._file.error(f"the merge {line[:100]!r} is not of two tokens into a third")
            merges.append((left, right))
        return merges

    def scored_merges(self) -> list[tuple[str, str]]:
        """The merges that are equivalent to SentencePiece's scores: pairs whose concatenation scores best come first.

        The conversion is that of Hugging Face's ``SentencePieceExtractor``. Raises ModelError.
        """
        scores = self._file.require("tokenizer.ggml.scores", np.ndarray).tolist()
        if len(scores) != len(self.tokens):
            raise self._file.error(f"tokenizer.ggml.scores has {len(scores)} entries for {len(self.tokens)} tokens")
        normal_type = int(TokenType.NORMAL)
        normal = {token: i for token, i in self.ids.items() if self.types[i] == normal_type}
        if sum(len(token) ** 2 for token in normal) > MAX_SQUARES:
            raise self._file.error(f"tokens are too long: their squared lengths add up to more than {MAX_SQUARES}")
        merges: list[tuple[str, str]] = []
        nbytes = 0
        for token in sorted(normal, key=lambda token: -scores[normal[token]]):
            cuts = range(1, len(token))
            known = [(token[:cut], token[cut:]) for cut in cuts if token[:cut] in normal and token[cut:] in normal]
            nbytes += len(token) * len(known)
            if nbytes > MAX_MERGES:
                raise self._file.error(
                    f"tokens can be merged in too many ways; at most {MAX_MERGES} bytes are supported"
                )
            merges += sorted(known, key=lambda pair: (normal[pair[0]], normal[pair[1]]))
        return merges

    def of_type(self, *types: TokenType) -> Iterator[str]:
        """The tokens of some types."""
        wanted = set(map(int, types))
        return (token for token, kind in zip(self.tokens, self.types, strict=True) if kind in wanted and token)

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every token, by id."""
        to_bytes = _sentencepiece_bytes if self._sentencepiece else _byte_level_bytes
        verbatim = set(map(int, VERBATIM))
        return [
            token.encode() if kind in verbatim else to_bytes(token)
            for token, kind in zip(self.tokens, self.types, strict=True)
        ]

    def _read_types(self) -> list[int]:
        key = "tokenizer.ggml.token_type"
        count = len(self.tokens)
        types: list[int] = self._file.get(key, np.ndarray, np.full(count, TokenType.NORMAL)).tolist()
        if len(types) != count:
            raise self._file.error(f"{key} has {len(types)} entries for {count} tokens")
        return types


def _sentencepiece_bytes(token: str) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes.fromhex(byte[1])
    return token.replace(SPACE, " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The byte that each printable character stands for in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_level_alphabet()
_LATIN_1 = str.maketrans({chr(code): "\uffff" for code in range(128, 256)} | {c: chr(b) for c, b in _BYTES.items()})


def _byte_level_bytes(token: str) -> bytes:
    try:
        return token.translate(_LATIN_1).encode("latin-1")
    except UnicodeEncodeError:
        # Some vocabularies have added tokens with characters outside the alphabet, which stand for themselves.
        return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in token)
