"""SentencePiece BPE (``llama``, ``gemma4``): characters are joined by their tokens' scores, or by a list of merges.

Characters without a token become tokens for their bytes.
"""

from __future__ import annotations

import tokenizers
from gguf import TokenType
from tokenizers import models

from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.lm.tokenizer_spaces import Spaces
from wasmetal.models.lm.vocabulary import MAX_MERGES, Vocabulary

MAX_SQUARES = 1 << 26
"""Sum of the squares of the tokens' lengths, in characters: finding their merges takes time in proportion. 260,000
tokens may have 16 characters on average."""


class SentencePiece:
    """The kind of Llama 2, Mistral and Gemma."""

    add_bos = True
    add_eos = False

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._spaces = Spaces(file, [])
        self.space_prefix = self._spaces.space_prefix
        self.to_bytes = self._spaces.to_bytes
        listed = file.get("tokenizer.ggml.model", str, "") == "gemma4"
        self._listed = listed or file.get("tokenizer.merges_are_listed", bool, False)

    def build(self, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
        """The tokenizer of texts without control tokens. Raises ModelError."""
        vocabulary.check_bytes()
        spellings = vocabulary.spellings()
        unknown = vocabulary.token_id("unknown")
        bpe = models.BPE(
            vocab={token: i for i, token in enumerate(spellings)},
            merges=vocabulary.listed_merges() if self._listed else self._scored_merges(vocabulary),
            unk_token=None if unknown is None else spellings[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
        tokenizer = tokenizers.Tokenizer(bpe)
        self._spaces.prepare(tokenizer)
        return tokenizer

    def _scored_merges(self, vocabulary: Vocabulary) -> list[tuple[str, str]]:
        """The merges that are equivalent to SentencePiece's scores: pairs whose concatenation scores best come first.

        The conversion is that of Hugging Face's ``SentencePieceExtractor``. Raises ModelError.
        """
        scores = vocabulary.scores()
        normal = {token: vocabulary.ids[token] for token in vocabulary.of_type(TokenType.NORMAL)}
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
