"""Text to token ids and back, built from a GGUF file's own metadata on the ``tokenizers`` package.

Two kinds, named as in ``tokenizer.ggml.model``: ``gpt2`` (byte-level BPE with a merge list; Llama 3, SmolLM2, Qwen2)
and ``llama`` (SentencePiece BPE with scores and byte fallback; Llama 2).
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import tokenizers
from gguf import TokenType
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from wasmetal.errors import ModelError
from wasmetal.models.files.gguf import GGUFFile

# A batch of one text gains nothing from a pool of threads; and what is computed there is charged to no guest.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "command-r": (r"\p{N}", _GPT2),
    "dbrx": (_LLAMA3,),
    "default": (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "falcon": (r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "mpt": (_GPT2,),
    "olmo": (_GPT2,),
    "qwen2": (_QWEN2,),
    "refact": (r"\p{N}", _GPT2),
    "smaug-bpe": (_LLAMA3,),
    "smollm": (r"\p{N}", _GPT2),
    "stablelm2": (_QWEN2,),
    "starcoder": (r"\p{N}", _GPT2),
}
"""Patterns that split text into words before BPE, applied one after another, by ``tokenizer.ggml.pre``.

They come from the models' published ``tokenizer.json`` files; the names are llama.cpp's.
"""

_WHOLE_WORDS_FIRST = frozenset({"llama-bpe"})
"""Vocabularies in which a whole word that is a token becomes that token, whatever the merges say."""

_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""Texts of the tokens that end a generation, for files whose metadata names only one of them."""

_SPACE = "▁"
"""SentencePiece's stand-in for a space."""


class Tokenizer:
    """The tokenizer of a model file. Raises ModelError if it is of an unknown kind or inconsistent."""

    bos: int | None
    """The token that begins a text."""
    eos: int | None
    """The token that ends a text."""
    eot: int | None
    """The token that ends a turn of a conversation."""
    end_of_generation: frozenset[int]
    """The tokens that end a reply: ``eos``, ``eot`` and similar ones."""
    add_bos: bool
    """Whether the model expects texts to begin with ``bos``."""

    def __init__(self, file: GGUFFile):
        self.tokens: list[str] = file.require("tokenizer.ggml.tokens", list)
        """Every token as spelled in the file (see :meth:`pieces` for its bytes)."""
        self._types = _read_types(file, len(self.tokens))
        self._ids = {token: i for i, token in enumerate(self.tokens) if token}
        if not self._ids or len(self._ids) != sum(map(bool, self.tokens)):
            raise file.error("tokenizer.ggml.tokens is empty or contains a token twice")

        kind = file.require("tokenizer.ggml.model", str)
        if kind not in ("gpt2", "llama"):
            raise file.error(f"tokenizer.ggml.model is {kind!r}; supported: gpt2, llama")
        self._sentencepiece = kind == "llama"
        self._space_prefix = self._sentencepiece and file.get("tokenizer.ggml.add_space_prefix", bool, True)
        pre = "" if self._sentencepiece else file.require("tokenizer.ggml.pre", str)
        if not self._sentencepiece and pre not in PRE_TOKENIZERS:
            raise file.error(f"tokenizer.ggml.pre is {pre!r}; supported: {', '.join(PRE_TOKENIZERS)}")
        try:
            base = self._build_sentencepiece(file) if self._sentencepiece else self._build_byte_level(file, pre)
        except ModelError:
            raise
        except Exception as e:  # the package raises bare Exceptions
            raise file.error(f"the vocabulary is inconsistent: {' '.join(str(e).split())}") from e
        self._plain, self._special = self._with_added_tokens(base)

        size = len(self.tokens)
        self.bos, self.eos, self.eot = (_token_id(file, name, size) for name in ("bos", "eos", "eot"))
        if self.eot is None:
            self.eot = self._first_control(_END_OF_TURN)
        ends = (self._first_control([text]) for text in (*_END_OF_TURN, *_END_OF_TEXT))
        self.end_of_generation = frozenset(i for i in (self.eos, self.eot, *ends) if i is not None)
        by_default = self._sentencepiece or pre in _WHOLE_WORDS_FIRST
        self.add_bos = file.get("tokenizer.ggml.add_bos_token", bool, by_default) and self.bos is not None

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def encode(self, text: str, *, parse_special: bool = True, add_bos: bool | None = None) -> list[int]:
        """The ids of a text.

        With ``parse_special``, the text of a control token, such as ``<|im_end|>``, becomes that token; without it, it
        stays text, so that untrusted text cannot end a turn. ``add_bos`` puts ``bos`` first; None does what the model
        expects. Raises ModelError if the text is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise ModelError(f"the text is not valid Unicode: {e}") from e
        tokenizer = self._special if parse_special else self._plain
        # Unlike ``encode``, this lets other threads of Python run meanwhile.
        ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if (self.add_bos if add_bos is None else add_bos) and self.bos is not None:
            ids = [self.bos, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids. Bytes that are not UTF-8 become U+FFFD. Raises ModelError if an id is out of range."""
        return "".join(self.stream(ids))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids as they arrive, each piece as soon as its characters are complete.

        A character may be split over several tokens; an incomplete one at the end becomes U+FFFD.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = self.pieces()
        at_start = self._space_prefix
        for i in ids:
            if not 0 <= i < len(pieces):
                raise ModelError(f"token id {i} is not in the vocabulary of {len(pieces)}")
            piece = pieces[i]
            text = decoder.decode(piece.removeprefix(b" ") if at_start else piece)
            at_start = False
            if text:
                yield text
        if rest := decoder.decode(b"", final=True):
            yield rest

    def pieces(self) -> list[bytes]:
        """The bytes of every token, by id. A token may be part of a UTF-8 character."""
        return self._pieces

    @cached_property
    def _pieces(self) -> list[bytes]:
        verbatim = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        to_bytes = _sentencepiece_bytes if self._sentencepiece else _byte_level_bytes
        return [
            token.encode() if kind in verbatim else to_bytes(token)
            for token, kind in zip(self.tokens, self._types, strict=True)
        ]

    def _build_byte_level(self, file: GGUFFile, pre: str) -> tokenizers.Tokenizer:
        merges = []
        for merge in file.require("tokenizer.ggml.merges", list):
            left, _, right = merge.partition(" ")
            merges.append((left, right))
        bpe = models.BPE(vocab=self._ids, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST)
        tokenizer = tokenizers.Tokenizer(bpe)
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        return tokenizer

    def _build_sentencepiece(self, file: GGUFFile) -> tokenizers.Tokenizer:
        scores = file.require("tokenizer.ggml.scores", np.ndarray)
        if len(scores) != len(self.tokens):
            raise file.error(f"tokenizer.ggml.scores has {len(scores)} entries for {len(self.tokens)} tokens")
        unknown = _token_id(file, "unknown", len(self.tokens))
        bpe = models.BPE(
            vocab=self._ids,
            merges=_merges_by_score(self.tokens, self._types, scores.tolist()),
            unk_token=None if unknown is None else self.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
        tokenizer = tokenizers.Tokenizer(bpe)
        prefix = [normalizers.Prepend(_SPACE)] if self._space_prefix else []
        tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
        return tokenizer

    def _with_added_tokens(self, base: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """Two tokenizers: one recognizes user-defined tokens in a text, the other control tokens too."""
        special = tokenizers.Tokenizer(base.model)
        special.normalizer, special.pre_tokenizer = base.normalizer, base.pre_tokenizer
        added = {TokenType.USER_DEFINED: (base, special), TokenType.CONTROL: (special,), TokenType.UNKNOWN: (special,)}
        for token, kind in zip(self.tokens, self._types, strict=True):
            for tokenizer in added.get(kind, ()) if token else ():
                tokenizer.add_tokens([AddedToken(token, normalized=False)])
        return base, special

    def _first_control(self, texts: Iterable[str]) -> int | None:
        ids = (self._ids.get(text) for text in texts)
        return next((i for i in ids if i is not None and self._types[i] == TokenType.CONTROL), None)


def _read_types(file: GGUFFile, count: int) -> list[int]:
    key = "tokenizer.ggml.token_type"
    types: list[int] = file.get(key, np.ndarray, np.full(count, TokenType.NORMAL)).tolist()
    if len(types) != count:
        raise file.error(f"{key} has {len(types)} entries for {count} tokens")
    return types


def _token_id(file: GGUFFile, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    i = file.get(key, int, None)
    if i is not None and not 0 <= i < count:
        raise file.error(f"{key} is {i}; the vocabulary has {count} tokens")
    return i


def _merges_by_score(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """The merge list that is equivalent to SentencePiece's scores: pairs whose concatenation scores best come first.

    The conversion is that of Hugging Face's ``SentencePieceExtractor``.
    """
    normal = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind == TokenType.NORMAL}
    merges = []
    for token in sorted(normal, key=lambda t: -scores[normal[t]]):
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(left, right) for left, right in pairs if left in normal and right in normal]
        merges += sorted(known, key=lambda pair: (normal[pair[0]], normal[pair[1]]))
    return merges


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(_SPACE, " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The byte that each printable character stands for in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    # Some vocabularies have added tokens with characters outside the alphabet, which stand for themselves.
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in token)
