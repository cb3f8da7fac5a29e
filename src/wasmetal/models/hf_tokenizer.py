"""The tokenizer of a folder of Hugging Face (``tokenizer.json``), in GGUF's terms.

Three kinds: byte-level BPE, SentencePiece's BPE with bytes for what has no token, and SentencePiece's unigram model.
What GGUF files have no key for is under keys of our own, without ``ggml``. All of it is untrusted.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import TokenType

from wasmetal.errors import ModelError
from wasmetal.models.files.gguf_header import quote
from wasmetal.models.lm.tokenizer import FLAGS
from wasmetal.models.lm.tokenizer_patterns import PRE_TOKENIZERS, WHOLE_WORDS_FIRST
from wasmetal.models.lm.tokenizer_spaces import MAX_CHARSMAP, SPACE, WORDS
from wasmetal.models.lm.vocabulary import MAX_TOKENS, byte_of

Error = Callable[[str], ModelError]


def tokenizer_fields(found: dict[str, Any], size: Any, error: Error) -> dict[str, Any]:
    """The metadata of a GGUF file with the tokenizer ``found`` in ``tokenizer.json``, for a model with ``size`` tokens.

    ``error`` makes a ModelError that names the file. Raises ModelError if the tokenizer is not supported.
    """
    if type(size) is not int or not 1 <= size <= MAX_TOKENS:
        raise error(f"{size} tokens; 1 to {MAX_TOKENS} are supported")
    model = found.get("model") or {}
    added = _added(found.get("added_tokens") or [], size, error)
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise error(f"tokenizer.json has a {option}, which is not supported")
    match model:
        case {"type": "BPE", "vocab": dict(vocabulary), "merges": list(merges)} if model.get("byte_fallback"):
            fields: dict[str, Any] = {"tokenizer.ggml.model": "llama", "tokenizer.merges_are_listed": True}
            fields |= _merges(merges, error) | _spaces(found, error)
            if model.get("ignore_merges"):
                raise error("tokenizer.json takes whole words before merges, which is not supported")
        case {"type": "BPE", "vocab": dict(vocabulary), "merges": list(merges)}:
            pre = _pre_tokenizer(found, model.get("ignore_merges") is True, error)
            fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre} | _merges(merges, error)
        case {"type": "Unigram", "vocab": list(pairs)}:
            fields = {"tokenizer.ggml.model": "t5"} | _spaces(found, error)
            vocabulary, fields["tokenizer.ggml.scores"] = _scored(pairs, size, error)
        case _:
            raise error("tokenizer.json is neither BPE nor unigram, the kinds that are supported in folders")
    unknown = model.get("unk_id")
    if isinstance(token := model.get("unk_token"), str):
        unknown = vocabulary.get(token, added.get(token, (None,))[0])
    if type(unknown) is int:
        fields["tokenizer.ggml.unknown_token_id"] = unknown
    fields |= _tokens(vocabulary, added, size, bool(model.get("byte_fallback")), error)
    return fields | _ends(found.get("post_processor"), fields["tokenizer.ggml.tokens"])


def _tokens(
    vocabulary: dict[str, Any], added: dict[str, tuple[int, dict[str, Any]]], size: int, bytes_too: bool, error: Error
) -> dict[str, Any]:
    """Tokens by id, as many as the model has, and their types."""
    tokens, types = [""] * size, np.full(size, TokenType.UNUSED, np.int32)
    for token, i in vocabulary.items():
        if type(i) is not int or not 0 <= i < size:
            raise error(f"tokenizer.json gives {quote(token)} an id that the model has not")
        tokens[i] = token
        types[i] = TokenType.BYTE if bytes_too and byte_of(token) is not None else TokenType.NORMAL
    for token, (i, each) in added.items():
        tokens[i], types[i] = token, TokenType.CONTROL if each["special"] else TokenType.USER_DEFINED
    flags = {f"tokenizer.{flag}": [token for token, (_, each) in added.items() if each.get(flag)] for flag in FLAGS}
    return {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types} | flags


def _added(added: Any, size: int, error: Error) -> dict[str, tuple[int, dict[str, Any]]]:
    """The added tokens' ids, and what ``tokenizer.json`` says of them."""
    result = {}
    for each in added if isinstance(added, list) else []:
        match each:
            case {"id": int(i)} if i >= size:
                pass  # such as Gemma 3's token for images, which the models for text alone have no embedding of
            case {"id": int(i), "content": str(content), "special": bool()} if i >= 0:
                result[content] = i, each
            case _:
                raise error("tokenizer.json has an added token without content, or with an id that is none")
    return result


def _merges(merges: list[Any], error: Error) -> dict[str, Any]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if not all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in pairs):
        raise error("tokenizer.json has a merge that is not of two tokens")
    return {"tokenizer.ggml.merges": [" ".join(pair) for pair in pairs]}


def _scored(pairs: list[Any], size: int, error: Error) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """A unigram model's ids by token, and the scores by id."""
    if len(pairs) > size:
        raise error(f"tokenizer.json has {len(pairs)} tokens, and the model {size}")
    ids, scores = {}, np.zeros(size)
    for i, pair in enumerate(pairs):
        match pair:
            case [str(token), float() | int() as score] if abs(score) < 1e30:
                ids[token], scores[i] = i, score
            case _:
                raise error("tokenizer.json has a token without a score")
    scores[len(pairs) :] = scores[: len(pairs)].max(initial=0.0)  # the lowest score decides what is unknown
    return ids, scores


def _pre_tokenizer(found: dict[str, Any], whole_words_first: bool, error: Error) -> str:
    """The name that a byte-level pre-tokenizer with these patterns has in GGUF files."""
    if (found.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        raise error("tokenizer.json has a normalizer that is not supported; supported: none, NFC")
    patterns: list[str] = []
    steps = _sequence(found.get("pre_tokenizer"), "pretokenizers")
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
                patterns.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(r"\p{N}")
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
                pass
            case {"type": "ByteLevel", "add_prefix_space": False}:
                patterns += PRE_TOKENIZERS["gpt-2"]
            case _:
                raise error("tokenizer.json splits texts in a way that is not supported")
    if not any(step["type"] == "ByteLevel" for step in steps):
        raise error("tokenizer.json has no bytes stand as characters, nor bytes as tokens, which is not supported")
    for name, known in PRE_TOKENIZERS.items():
        if known == tuple(patterns) and (name in WHOLE_WORDS_FIRST) == whole_words_first:
            return name
    raise error("tokenizer.json splits texts by patterns that are not supported")


def _spaces(found: dict[str, Any], error: Error) -> dict[str, Any]:
    """How SentencePiece's texts are prepared: see :class:`~wasmetal.models.lm.tokenizer_spaces.Spaces`."""
    steps: list[str] = []
    fields: dict[str, Any] = {"tokenizer.steps": steps}
    replaced = False
    for step in _sequence(found.get("normalizer"), "normalizers"):
        if replaced:
            raise error("tokenizer.json normalizes texts in an order that is not supported")
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                steps.append("space prefix")
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                replaced = True
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "▁"}:
                steps.append("single spaces")
            case {"type": "Precompiled", "precompiled_charsmap": str(text)} if len(text) <= 2 * MAX_CHARSMAP:
                steps.append("charsmap")
                try:
                    charsmap = base64.b64decode(text, validate=True)
                except binascii.Error:
                    raise error("tokenizer.json has a precompiled_charsmap that is no base64") from None
                fields["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
            case {"type": "Strip", "strip_left": bool(left), "strip_right": True}:
                steps.append("strip" if left else "strip right")
            case {"type": "NFKC" | "NFC" | "Lowercase" as name}:
                steps.append(name.lower())
            case _:
                raise error("tokenizer.json has a normalizer that is not supported")
    for step in _sequence(found.get("pre_tokenizer"), "pretokenizers"):
        match step:
            case {"type": "WhitespaceSplit"} if "tokenizer.words" not in fields and not replaced:
                fields["tokenizer.words"] = WORDS[2]
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first" | "always" | "never" as scheme}:
                replaced = True
                fields["tokenizer.metaspace"] = scheme
                if step.get("split", True):
                    fields.setdefault("tokenizer.words", WORDS[1])
            case {"type": "Split", "pattern": {"String": " "}} if replaced:
                pass  # there are none left
            case _:
                raise error("tokenizer.json splits texts in a way that is not supported")
    if not replaced:
        raise error(f"tokenizer.json has no {SPACE} stand for spaces, which is not supported")
    return fields


def _sequence(steps: Any, key: str) -> list[Any]:
    """The steps of a normalizer or a pre-tokenizer, which may be one, several or none."""
    if isinstance(steps, dict) and steps.get("type") == "Sequence":
        steps = steps.get(key)
    if steps is None:
        return []
    return steps if isinstance(steps, list) else [steps]


def _ends(processor: Any, tokens: list[str]) -> dict[str, Any]:
    """Whether a token is put before texts, or after them."""
    ids = {token: i for i, token in enumerate(tokens)}
    fields = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}
    for step in _sequence(processor, "processors"):
        single = step.get("single") if isinstance(step, dict) else None
        names = [each.get("SpecialToken", {}).get("id") if isinstance(each, dict) else None for each in single or [{}]]
        if isinstance(names[0], str) and names[0] in ids:
            fields["tokenizer.ggml.add_bos_token"] = True
        if len(names) > 1 and isinstance(names[-1], str) and names[-1] in ids:
            fields["tokenizer.ggml.add_eos_token"] = True
    return fields
