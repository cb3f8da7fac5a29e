"""Byte-level BPE (``gpt2``): words are bytes, spelled as printable characters, and joined by a list of merges."""

from __future__ import annotations

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.lm.tokenizer_patterns import PRE_TOKENIZERS, WHOLE_WORDS_FIRST
from wasmetal.models.lm.vocabulary import Vocabulary


class ByteLevel:
    """GPT-2's kind, whose vocabularies differ in how texts are split into words."""

    space_prefix = False
    add_eos = False

    def __init__(self, file: ModelFile) -> None:
        self._pre = file.require("tokenizer.ggml.pre", str)
        if self._pre not in PRE_TOKENIZERS:
            raise file.error(f"tokenizer.ggml.pre is {self._pre!r}; supported: {', '.join(PRE_TOKENIZERS)}")
        self.add_bos = self._pre in WHOLE_WORDS_FIRST
        self._whole_words_first = file.get("tokenizer.whole_words_first", bool, self.add_bos)

    def build(self, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
        """The tokenizer of texts without control tokens. Raises ModelError."""
        ids = {token: i for i, token in enumerate(vocabulary.spellings())}
        merges = vocabulary.listed_merges()
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=self._whole_words_first))
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[self._pre]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        return tokenizer

    def to_bytes(self, token: str) -> bytes:
        """What a part of a word stands for."""
        try:
            return token.translate(_LATIN_1).encode("latin-1")
        except UnicodeEncodeError:
            # Some vocabularies have added tokens with characters outside the alphabet, which stand for themselves.
            return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in token)


def _alphabet() -> dict[str, int]:
    """The byte that each printable character stands for in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _alphabet()
_LATIN_1 = str.maketrans({chr(code): "\uffff" for code in range(128, 256)} | {c: chr(b) for c, b in _BYTES.items()})
