"""Text to token ids and back, built from a model file's own metadata on the ``tokenizers`` package.

Four kinds, each with a module, under the names of ``tokenizer.ggml.model``.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import tokenizers
from gguf import TokenType
from tokenizers import AddedToken

from wasmetal.errors import ModelError, printable
from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.lm.tokenizer_byte_level import ByteLevel
from wasmetal.models.lm.tokenizer_sentencepiece import SentencePiece
from wasmetal.models.lm.tokenizer_unigram import Unigram
from wasmetal.models.lm.tokenizer_wordpiece import WordPiece
from wasmetal.models.lm.vocabulary import Vocabulary, of_type
from wasmetal.models.packed import Packed

# A batch of one text gains nothing from a pool of threads; and what is computed there is charged to no guest.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Kind(Protocol):
    """How texts without control tokens are tokenized."""

    space_prefix: bool
    """Whether a text's first token has a space that is none of the text."""
    add_bos: bool
    add_eos: bool
    """What models of this kind expect, unless their files say otherwise."""

    def __init__(self, file: ModelFile) -> None:
        """Read how from a model file. Raises ModelError."""

    def build(self, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
        """A tokenizer whose model has every id, and finds no control tokens. Raises ModelError."""

    def to_bytes(self, token: str) -> bytes:
        """What a token that is part of a word stands for."""


KINDS: dict[str, type[Kind]] = {
    "gpt2": ByteLevel,
    "llama": SentencePiece,
    "gemma4": SentencePiece,
    "t5": Unigram,
    "bert": WordPiece,
}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
"""How added tokens are found in a text. ``tokenizer.FLAG`` lists those found so; GGUF files have no such key."""
_PHI3_KEEP_SPACE = frozenset({"<s>", "<unk>", "<|endoftext|>"})
"""Control tokens of Phi 3 with SentencePiece's vocabulary that leave the white space after them: GGUF files do not say
that the others take it (``rstrip`` in its tokenizer.json)."""
_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|return|>",
    "<|end|>",
    "<end_of_turn>",
    "<|END_OF_TURN_TOKEN|>",
    "<|eom_id|>",
)
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|call|>", "</s>")
"""Texts of the tokens that end a generation, for files whose metadata names only one of them."""


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

    add_eos: bool
    """Whether the model expects texts to end with ``eos``: those that it embeds, not those that it continues."""

    def __init__(self, file: ModelFile):
        name = file.require("tokenizer.ggml.model", str)
        if name not in KINDS:
            raise file.error(f"tokenizer.ggml.model is {name!r}; supported: {', '.join(KINDS)}")
        kind = KINDS[name](file)
        self._space_prefix = kind.space_prefix
        vocabulary = Vocabulary(file)
        self._types = vocabulary.types
        self.tokens = Packed(map(str.encode, vocabulary.tokens), bytes.decode)
        """Every token as spelled in the file (see :meth:`pieces` for its bytes)."""
        with _refusals(f"{file.path.name}: the vocabulary is inconsistent"):
            self._plain = kind.build(vocabulary)
            if self._plain.get_vocab_size() != len(self.tokens):
                raise file.error("the vocabulary is inconsistent: two tokens would be the same in a word")
            self._flags = {flag: frozenset(file.get(f"tokenizer.{flag}", list, [])) for flag in FLAGS}
            if name == "llama" and file.get("general.architecture", str, "") == "phi3":
                self._flags["rstrip"] = frozenset(vocabulary.of_type(TokenType.CONTROL)) - _PHI3_KEEP_SPACE
            self._special = tokenizers.Tokenizer(self._plain.model)
            self._special.normalizer = self._plain.normalizer
            self._special.pre_tokenizer = self._plain.pre_tokenizer
            self._plain_ids = self._recognize(self._plain, vocabulary, control=False)
            self._special_ids = self._recognize(self._special, vocabulary, control=True)
        self._pieces = Packed(vocabulary.pieces(kind.to_bytes), bytes)

        self.bos, self.eos, self.eot = map(vocabulary.token_id, ("bos", "eos", "eot"))
        if name == "bert":
            self.bos, self.eos = vocabulary.token_id("cls") or self.bos, vocabulary.token_id("seperator") or self.eos
        if self.eot is None:
            self.eot = vocabulary.first_control(_END_OF_TURN)
        ends = {self.eos, self.eot, *(vocabulary.first_control([text]) for text in (*_END_OF_TURN, *_END_OF_TEXT))}
        if vocabulary.first_control(["<|return|>"]) is not None:  # gpt-oss's <|end|> ends one message of several
            ends.discard(vocabulary.first_control(["<|end|>"]))
        self.end_of_generation = frozenset(i for i in ends if i is not None)
        self.add_bos = file.get("tokenizer.ggml.add_bos_token", bool, kind.add_bos) and self.bos is not None
        self.add_eos = file.get("tokenizer.ggml.add_eos_token", bool, kind.add_eos) and self.eos is not None

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
        renamed = self._special_ids if parse_special else self._plain_ids
        with _refusals("the text cannot be tokenized"):
            # Unlike ``encode``, this lets other threads of Python run meanwhile.
            ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if renamed:
            ids = [renamed.get(i, i) for i in ids]
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

    def pieces(self) -> Packed[bytes]:
        """The bytes of every token, by id. A token may be part of a UTF-8 character."""
        return self._pieces

    def of_type(self, *types: TokenType) -> Iterator[str]:
        """The tokens of some types, as spelled in the file."""
        return of_type(self.tokens, self._types, types)

    def ids_of_type(self, *types: TokenType) -> list[int]:
        """The ids of the tokens of some types."""
        wanted = set(types)
        return [i for i, kind in enumerate(self._types) if kind in wanted]

    def _recognize(self, tokenizer: tokenizers.Tokenizer, vocabulary: Vocabulary, control: bool) -> dict[int, int]:
        """Have a tokenizer find tokens in a text before anything else; return their ids by those that it gives them.

        It has its own ids for those that it does not find in words.
        """
        tokens, flags = vocabulary.recognized(control), self._flags
        added = [AddedToken(token, **{flag: token in flagged for flag, flagged in flags.items()}) for token in tokens]
        tokenizer.add_tokens(added)  # in one call: each takes time in proportion to all added tokens
        ids = {tokenizer.token_to_id(token): vocabulary.ids[token] for token in tokens}
        return {given: i for given, i in ids.items() if given != i and given is not None}


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn what the package raises into ModelError: bare Exceptions, and Rust's panics, which are none."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, ModelError):
        raise
    except BaseException as error:
        raise ModelError(f"{what}: {printable(' '.join(str(error).split()))}") from error
