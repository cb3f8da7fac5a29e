"""How SentencePiece prepares a text: it normalizes characters, and has spaces stand as a character of their own."""

from __future__ import annotations

import numpy as np
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.lm.vocabulary import byte_of

SPACE = "▁"
"""SentencePiece's stand-in for a space."""
MAX_CHARSMAP = 8 << 20
"""Bytes of a table of characters that are replaced; XLM-RoBERTa's has 240,000."""
MAX_REPLACEMENT = 64
"""Bytes that one character becomes. Of NFKC's, the longest are 33."""

STEPS = {
    "nfkc": normalizers.NFKC(),
    "nfc": normalizers.NFC(),
    "lowercase": normalizers.Lowercase(),
    "strip": normalizers.Strip(),
    "strip right": normalizers.Strip(left=False),
    "single spaces": normalizers.Replace(Regex(" {2,}"), " "),
    "space prefix": normalizers.Prepend(SPACE),
}
"""What may happen to a text, in an order that the file says, before its spaces are replaced."""
WORDS = ("whole text", "words", "words at spaces")
"""Whether words are split: not; before each space's stand-in; or at white space, which is dropped."""


class Spaces:
    """What a model file says of this, and how tokens are read back.

    GGUF files say so by ``add_space_prefix`` and the like. Of a folder of Hugging Face, ``tokenizer.steps`` (a list of
    names in STEPS, and "charsmap"), ``tokenizer.metaspace`` (where spaces are put before words: "first", "always" or
    "never") and ``tokenizer.words`` (one of WORDS) take their place.
    """

    def __init__(self, file: ModelFile, default_steps: list[str]) -> None:
        self._charsmap = _charsmap(file)
        prefix = ["space prefix"] if file.get("tokenizer.ggml.add_space_prefix", bool, True) else []
        known = ["charsmap"] if self._charsmap else []
        self._steps = file.get("tokenizer.steps", list, [*known, *default_steps, *prefix])
        self._metaspace = file.get("tokenizer.metaspace", str, "never")
        self._words = file.get("tokenizer.words", str, WORDS[0])
        self.space_prefix = "space prefix" in self._steps or self._metaspace != "never"
        """Whether a text's first space is none of its own."""

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Have a tokenizer prepare texts in this way."""
        steps = [normalizers.Precompiled(self._charsmap) if name == "charsmap" else STEPS[name] for name in self._steps]
        split = self._words != WORDS[0]
        if self._words == "words at spaces":
            tokenizer.normalizer = normalizers.Sequence(steps)
        else:
            tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        if split or self._metaspace != "never":
            whites = [pre_tokenizers.WhitespaceSplit()] if self._words == "words at spaces" else []
            metaspace = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=self._metaspace, split=split)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*whites, metaspace])

    @staticmethod
    def to_bytes(token: str) -> bytes:
        """What a part of a word stands for."""
        byte = byte_of(token)
        return token.replace(SPACE, " ").encode() if byte is None else bytes([byte])


def _charsmap(file: ModelFile) -> bytes:
    """SentencePiece's ``precompiled_charsmap``: a double-array trie, then the texts it leads to, each ended by 0."""
    array = file.get("tokenizer.ggml.precompiled_charsmap", np.ndarray, np.array([], np.uint8))
    if array.size > MAX_CHARSMAP:
        raise file.error(f"a precompiled_charsmap of {array.size} bytes; at most {MAX_CHARSMAP} are supported")
    charsmap = array.astype(np.uint8).tobytes()
    if not charsmap:
        return b""
    trie = int.from_bytes(charsmap[:4], "little")
    texts = charsmap[4 + trie :]
    if trie % 4 or not texts.endswith(b"\0") or max(map(len, texts.split(b"\0"))) > MAX_REPLACEMENT:
        raise file.error("tokenizer.ggml.precompiled_charsmap is damaged, or replaces characters by long texts")
    return charsmap
