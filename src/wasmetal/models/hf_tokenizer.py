"""The tokenizer of a folder of Hugging Face (``tokenizer.json``), in GGUF's terms.

Four kinds: byte-level BPE, SentencePiece's BPE with bytes for what has no token, SentencePiece's unigram model, and
WordPiece. What GGUF files have no key for is under keys of our own, without ``ggml``. All of it is untrusted.
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
from wasmetal.models.lm.tokenizer_wordpiece import CONTINUES, MAX_WORD
from wasmetal.models.lm.vocabulary import MAX_TOKENS, byte_of

Error = Callable[[str], ModelError]


def tokenizer_fields(found: dict[str, Any], size: Any, error: Error) -> dict[str, Any]:
    """The metadata of a GGUF file with the tokenizer ``found`` in ``tokenizer.json``, for a model with ``size`` tokens.

    ``error`` makes a ModelError that names the file. Raises ModelError if the tokenizer is not supported.
    """
    if type(size) is not int or not 1 <= size <= MAX_TOKENS:
        raise error(f"{size} tokens; 1 to {MAX_TOKENS} are supported")
    model = _model(found.get("model"))
    added = _added(found.get("added_tokens") or [], size, error)
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option) and (option, model.get("type")) != ("continuing_subword_prefix", "WordPiece"):
            raise error(f"tokenizer.json has a {option}, which is not supported")
    match model:
        case {"type": "BPE", "vocab": dict(vocabulary), "merges": list(merges)} if model.get("byte_fallback"):
            fields: dict[str, Any] = {"tokenizer.ggml.model": "llama", "tokenizer.merges_are_listed": True}
            fields |= _merges(merges, error) | _spaces(found, error)
            if model.get("ignore_merges"):
                raise error("tokenizer.json takes whole words before merges, which is not supported")
        case {"type": "BPE", "vocab": dict(vocabulary), "merges": list(merges)}:
            fields = {"tokenizer.ggml.model": "gpt2"} | _pre_tokenizer(found, model.get("ignore_merges") is True, error)
            fields |= _merges(merges, error)
        case {"type": "Unigram", "vocab": list(pairs)}:
            fields = {"tokenizer.ggml.model": "t5"} | _spaces(found, error)
            vocabulary, fields["tokenizer.ggml.scores"] = _scored(pairs, size, error)
        case {"type": "WordPiece", "vocab": dict(vocabulary)}:
            fields = {"tokenizer.ggml.model": "bert"} | _words(found, error)
        case _:
            raise error("tokenizer.json is none of BPE, unigram and WordPiece, the kinds that are supported in folders")
    unknown = model.get("unk_id")
    if isinstance(token := model.get("unk_token"), str):
        unknown = vocabulary.get(token, added.get(token, (None,))[0])
    if type(unknown) is int:
        fields["tokenizer.ggml.unknown_token_id"] = unknown
    fields |= _tokens(vocabulary, added, size, bool(model.get("byte_fallback")), error)
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    return fields | _ends(found.get("post_processor"), ids)


def _model(found: Any) -> dict[str, Any]:
    """The tokenizer's model, with its type: that was not written until 2021, such as for bert-base-uncased."""
    model = found if isinstance(found, dict) else {}
    for key, kind in (("merges", "BPE"), ("max_input_chars_per_word", "WordPiece")):
        if "type" not in model and key in model:
            return {"type": kind, **model}
    return model


def wordpiece(text: str, config: dict[str, Any]) -> dict[str, Any]:
    """What ``tokenizer.json`` would hold for BERT's ``vocab.txt``, a token on each line; ``config``: what
    ``tokenizer_config.json`` holds."""
    tokens = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    ids = {token: i for i, token in enumerate(tokens)}
    special = {}
    for role in ("unk", "sep", "pad", "cls", "mask"):
        named = config.get(f"{role}_token", f"[{role.upper()}]")
        special[role] = named.get("content") if isinstance(named, dict) else named
    first, last = ({"SpecialToken": {"id": special[role]}} for role in ("cls", "sep"))
    options = {"lowercase": "do_lower_case", "handle_chinese_chars": "tokenize_chinese_chars"}
    return {
        "added_tokens": [
            {"id": ids[token], "content": token, "special": True}
            for token in special.values()
            if isinstance(token, str) and token in ids
        ],
        "normalizer": {name: config.get(key, True) for name, key in options.items()}
        | {"type": "BertNormalizer", "clean_text": True, "strip_accents": config.get("strip_accents")},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": [first, {"Sequence": {"id": "A"}}, last]},
        "model": {"type": "WordPiece", "unk_token": special["unk"], "vocab": ids},
    }


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


def _pre_tokenizer(found: dict[str, Any], whole_words_first: bool, error: Error) -> dict[str, Any]:
    """The name that a byte-level pre-tokenizer with these patterns has in GGUF files; and, if none that has it takes
    whole words first or not as this one does, which of it this one does."""
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
    names = [name for name, known in PRE_TOKENIZERS.items() if known == tuple(patterns)]
    if not names:
        raise error("tokenizer.json splits texts by patterns that are not supported")
    for name in names:
        if (name in WHOLE_WORDS_FIRST) == whole_words_first:
            return {"tokenizer.ggml.pre": name}
    return {"tokenizer.ggml.pre": names[0], "tokenizer.whole_words_first": whole_words_first}


def _words(found: dict[str, Any], error: Error) -> dict[str, Any]:
    """How WordPiece's texts are prepared, and its parts of words spelled."""
    model: dict[str, Any] = found["model"]
    normalizer: Any = found.get("normalizer")
    match normalizer:
        case {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": bool(lowercase)}:
            accents = normalizer.get("strip_accents")
        case _:
            raise error("tokenizer.json has a normalizer that is not supported; of WordPiece, BertNormalizer is")
    if found.get("pre_tokenizer") != {"type": "BertPreTokenizer"}:
        raise error("tokenizer.json splits texts in a way that is not supported")
    prefix, longest = model.get("continuing_subword_prefix", CONTINUES), model.get("max_input_chars_per_word", MAX_WORD)
    if not isinstance(prefix, str) or longest != MAX_WORD or not isinstance(accents, bool | None):
        raise error(
            f"tokenizer.json has continuing_subword_prefix {prefix!r}, max_input_chars_per_word {longest!r} and "
            f"strip_accents {accents!r}; a text, {MAX_WORD} and a boolean or null are supported"
        )
    return {
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.normalizer.strip_accents": lowercase if accents is None else accents,
        "tokenizer.continuing_subword_prefix": prefix,
    }


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


def _ends(processor: Any, ids: dict[str, int]) -> dict[str, Any]:
    """Whether a token is put before texts, or after them; and which, if there is one."""
    fields: dict[str, Any] = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}

    def add(role: str, name: str, token: Any) -> None:
        if isinstance(token, str) and token in ids:
            fields[f"tokenizer.ggml.add_{role}_token"] = True
            fields[f"tokenizer.ggml.{name}_token_id"] = ids[token]

    for step in _sequence(processor, "processors"):
        match step:
            case {"type": "BertProcessing", "cls": [cls, _], "sep": [sep, _]}:
                names = [cls, sep]
            case {"single": [_, *_] as single}:
                parts = (each.get("SpecialToken") if isinstance(each, dict) else None for each in single)
                names = [part.get("id") if isinstance(part, dict) else None for part in parts]
            case _:
                names = []
        if names:
            add("bos", "cls", names[0])
        if len(names) > 1:
            add("eos", "seperator", names[-1])
    return fields
