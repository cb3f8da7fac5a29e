"""WordPiece (``bert``): words are split at punctuation, and each is cut into the longest tokens from its beginning on.

Devlin et al. 2018, "BERT". BERT spells a word's first token plainly, and the others with a prefix; GGUF files spell the
first with "▁", and the others plainly.
"""

from __future__ import annotations

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.lm.tokenizer_spaces import SPACE
from wasmetal.models.lm.vocabulary import Vocabulary

MAX_WORD = 100
"""Characters of a word; longer ones are unknown, as in BERT."""
CONTINUES = "##"
"""BERT's prefix."""


class WordPiece:
    """The kind of BERT."""

    space_prefix = True
    add_bos = True
    add_eos = True

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        lowercase = file.get("tokenizer.ggml.normalizer.lowercase", bool, True)
        accents = file.get("tokenizer.ggml.normalizer.strip_accents", bool, lowercase)
        self._prefix = file.get("tokenizer.continuing_subword_prefix", str, None)
        """That of the file's own spelling; None if it is that of GGUF files."""
        self._normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=accents)

    def build(self, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
        """The tokenizer of texts without control tokens. Raises ModelError."""
        unknown = vocabulary.token_id("unknown")
        if unknown is None:
            raise self._file.error("the metadata has no tokenizer.ggml.unknown_token_id")
        parts = vocabulary.spellings()
        if self._prefix is None:
            parts = list(map(_as_bert_does, parts))
        model = models.WordPiece(
            {part: i for i, part in enumerate(parts)},
            unk_token=parts[unknown],
            max_input_chars_per_word=MAX_WORD,
            continuing_subword_prefix=CONTINUES if self._prefix is None else self._prefix,
        )
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = self._normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    def to_bytes(self, token: str) -> bytes:
        """What a part of a word stands for."""
        if self._prefix is None:
            return token.replace(SPACE, " ").encode()
        part = token.removeprefix(self._prefix)
        return (part if len(part) < len(token) else f" {token}").encode()


def _as_bert_does(token: str) -> str:
    return token[1:] if token.startswith(SPACE) else CONTINUES + token
