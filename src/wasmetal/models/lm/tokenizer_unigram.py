"""SentencePiece's unigram model (``t5``): of all ways to cut a text into tokens, the one with the best sum of scores.

Kudo 2018, "Subword Regularization".
"""

from __future__ import annotations

import math

import tokenizers
from gguf import TokenType
from tokenizers import models

from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.lm.tokenizer_spaces import Spaces
from wasmetal.models.lm.vocabulary import Vocabulary

MAX_BYTES = 16 << 20
"""Bytes of all tokens, which become a trie. XLM-RoBERTa's 250,000 have 2 MiB."""


class Unigram:
    """The kind of T5 and XLM-RoBERTa."""

    add_bos = False
    add_eos = True

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        single = file.get("tokenizer.ggml.remove_extra_whitespaces", bool, False)
        self._spaces = Spaces(file, ["strip", "single spaces"] if single else [])
        self.space_prefix = self._spaces.space_prefix
        self.to_bytes = self._spaces.to_bytes

    def build(self, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
        """The tokenizer of texts without control tokens. Raises ModelError."""
        vocabulary.check_bytes()
        scores = vocabulary.scores()
        if not all(map(math.isfinite, scores)):
            raise self._file.error("tokenizer.ggml.scores has entries that are no numbers")
        if (nbytes := sum(map(len, vocabulary.tokens))) > MAX_BYTES:
            raise self._file.error(f"{nbytes} bytes of tokens; at most {MAX_BYTES} are supported")
        unknown = vocabulary.token_id("unknown")
        if unknown is None:
            raise self._file.error("the metadata has no tokenizer.ggml.unknown_token_id")
        fallback = any(True for _ in vocabulary.of_type(TokenType.BYTE))
        entries = list(zip(vocabulary.spellings(), scores, strict=True))
        tokenizer = tokenizers.Tokenizer(models.Unigram(entries, unknown, fallback))
        self._spaces.prepare(tokenizer)
        return tokenizer
