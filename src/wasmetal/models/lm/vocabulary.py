"""The vocabulary in a model file: tokens and merges, checked before a tokenizer is built of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

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

_VERBATIM = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN})
"""Types of the tokens that stand for their own spelling."""
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_MARKUP = re.compile(
    r"<\|[\w.:/-]{1,64}\|>|<｜[\w▁-]{1,64}｜>|</?s>|<(start|end)_of_turn>|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS"
    r"|TOOL_CALLS|TOOL_RESULTS)\]"
)
"""Tokens that structure conversations. Some files have them among the words, or as user-defined ones."""


class Vocabulary:
    """Tokens by id. Raises ModelError if they are inconsistent, or too many or too long."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self.tokens: list[str] = file.require("tokenizer.ggml.tokens", list)
        """Every token as spelled in the file."""
        if len(self.tokens) > MAX_TOKENS:
            raise file.error(f"{len(self.tokens)} tokens; at most {MAX_TOKENS} are supported")
        self.types = self._read_types()
        """Every token's type, a number of gguf.TokenType in a sound file."""
        self.ids = {token: i for i, token in enumerate(self.tokens) if token}
        """Every token's id, by its spelling."""
        if not self.ids or len(self.ids) != sum(map(bool, self.tokens)):
            raise file.error("tokenizer.ggml.tokens is empty or contains a token twice")
        # A character has up to four bytes.
        longest = max((len(token.encode()) for token in self.tokens if 4 * len(token) > MAX_TOKEN), default=0)
        if longest > MAX_TOKEN:
            raise file.error(f"a token of {longest} bytes; at most {MAX_TOKEN} are supported")
        if (added := sum(len(token.encode()) for token in self.of_type(*_VERBATIM))) > MAX_ADDED:
            raise file.error(f"{added} bytes of control and user-defined tokens; at most {MAX_ADDED} are supported")

    def token_id(self, name: str) -> int | None:
        """The id that the file gives the token of this role ("bos", "eos", …), if it names one. Raises ModelError."""
        key = f"tokenizer.ggml.{name}_token_id"
        i = self._file.get(key, int, None)
        if i is not None and not 0 <= i < len(self.tokens):
            raise self._file.error(f"{key} is {i}; the vocabulary has {len(self.tokens)} tokens")
        return i

    def spellings(self) -> list[str]:
        """The tokens by id as a tokenizer is to find them in words: those that no text may become have a space.

        Spaces are separators or stand as other characters in every kind of tokenizer, so that such a spelling never
        occurs in a word.
        """
        hidden = {int(TokenType.CONTROL), int(TokenType.UNKNOWN)}
        return [
            f" {i}" if kind in hidden or not token else token
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
        ]

    def listed_merges(self) -> list[tuple[str, str]]:
        """The merges in the file, the first to be applied first, without those of control tokens. Raises ModelError."""
        lines = self._file.require("tokenizer.ggml.merges", list)
        if (nbytes := sum(map(len, lines))) > MAX_MERGES:
            raise self._file.error(f"{nbytes} bytes of merges; at most {MAX_MERGES} are supported")
        hidden = set(self.of_type(TokenType.CONTROL, TokenType.UNKNOWN))
        merges = []
        for line in lines:
            left, _, right = line.partition(" ")
            if not (left in self.ids and right in self.ids and left + right in self.ids):
                raise self._file.error(f"the merge {line[:100]!r} is not of two tokens into a third")
            if not hidden & {left, right, left + right}:
                merges.append((left, right))
        return merges

    def scores(self) -> list[float]:
        """Every token's score. Raises ModelError."""
        scores: list[float] = self._file.require("tokenizer.ggml.scores", np.ndarray).tolist()
        if len(scores) != len(self.tokens):
            raise self._file.error(f"tokenizer.ggml.scores has {len(scores)} entries for {len(self.tokens)} tokens")
        return scores

    def of_type(self, *types: TokenType) -> Iterator[str]:
        """The tokens of some types."""
        return of_type(self.tokens, self.types, types)

    def first_control(self, texts: Iterable[str]) -> int | None:
        """The id of the first of some texts that is a control token."""
        ids = (self.ids.get(text) for text in texts)
        return next((i for i in ids if i is not None and self.types[i] == TokenType.CONTROL), None)

    def recognized(self, control: bool) -> list[str]:
        """The tokens to be found in a text before it is split into words: user-defined ones, and control tokens too."""
        return list(self.of_type(*_VERBATIM) if control else self.of_type(TokenType.USER_DEFINED))

    def check_bytes(self) -> None:
        """Raise ModelError if a token for a single byte is not spelled as SentencePiece does."""
        if wrong := [token for token in self.of_type(TokenType.BYTE) if not _BYTE.fullmatch(token)]:
            raise self._file.error(f"{wrong[0]!r} is no token for a byte, such as <0x0A>")

    def pieces(self, to_bytes: Callable[[str], bytes]) -> Iterator[bytes]:
        """The bytes of every token, by id: of a word's part, as ``to_bytes`` says."""
        verbatim = set(map(int, _VERBATIM))
        for token, kind in zip(self.tokens, self.types, strict=True):
            yield token.encode() if kind in verbatim else to_bytes(token)

    def _read_types(self) -> list[int]:
        key = "tokenizer.ggml.token_type"
        count = len(self.tokens)
        types: list[int] = self._file.get(key, np.ndarray, np.full(count, TokenType.NORMAL)).tolist()
        if len(types) != count:
            raise self._file.error(f"{key} has {len(types)} entries for {count} tokens")
        words = {int(TokenType.NORMAL), int(TokenType.USER_DEFINED)}
        control = int(TokenType.CONTROL)
        return [
            control if kind in words and token[:1] in ("<", "[") and _MARKUP.fullmatch(token) else kind
            for token, kind in zip(self.tokens, types, strict=True)
        ]


def of_type(tokens: Iterable[str], kinds: Iterable[int], wanted: Iterable[TokenType]) -> Iterator[str]:
    """The tokens whose kind is wanted."""
    numbers = set(map(int, wanted))
    return (token for token, kind in zip(tokens, kinds, strict=True) if kind in numbers and token)


def byte_of(token: str) -> int | None:
    """The byte that a token such as ``<0x0A>`` stands for in a SentencePiece vocabulary."""
    found = _BYTE.fullmatch(token)
    return int(found[1], 16) if found else None
