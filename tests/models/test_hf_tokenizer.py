"""Tokenizers of Hugging Face's folders: the ids that the package ``tokenizers`` itself gives for the same file."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from tests.models.charsmap import charsmap
from wasmetal.errors import ModelError
from wasmetal.models.files.model_file import FileMetadata
from wasmetal.models.hf_tokenizer import tokenizer_fields
from wasmetal.models.lm.tokenizer import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["▁", "a", "b", "c", "é", "\n", "."]
MERGES = [("a", "b"), ("▁", "a"), ("▁a", "b"), ("▁", "▁"), ("ab", "c"), ("\n", "\n"), ("▁ab", "c")]
SIZE = 400
TEXTS = st.lists(
    st.sampled_from([*"abc .é\n\tü中ﬀ①A", "  ", "ab", "▁", "<s>", "</s>", "<user>", "<0x41>"]), max_size=20
).map("".join)


def replaced() -> Any:
    return normalizers.Replace(" ", "▁")


def bpe(normalizer: Any, pre_tokenizer: Any, **flags: bool) -> tokenizers.Tokenizer:
    merged = [left + right for left, right in MERGES]
    ids = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *BYTES, *LETTERS, *merged])}
    model = models.BPE(vocab=ids, merges=MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    return finished(made, **flags)


def unigram(normalizer: Any, pre_tokenizer: Any, byte_fallback: bool = False) -> tokenizers.Tokenizer:
    words = {"▁": -3.0, "a": -4.5, "b": -4.0, "ab": -5.1, "▁a": -4.2, "abc": -9.5, "c": -5.0, "▁ab": -6.1, ".": -4}
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "<s>": 0.0, **words, "▁c▁": -2.5, "ff": -6.0, "1": -7.0}
    scores |= dict.fromkeys(BYTES, -8.0) if byte_fallback else {}
    made = tokenizers.Tokenizer(models.Unigram(list(scores.items()), 2, byte_fallback))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    return finished(made)


def finished(made: tokenizers.Tokenizer, **flags: bool) -> tokenizers.Tokenizer:
    made.add_special_tokens([AddedToken(token, normalized=False, **flags) for token in ("<unk>", "<s>", "</s>")])
    made.add_tokens([AddedToken("<user>", normalized=False, **flags)])
    return made


MAP = charsmap({"ﬀ": "ff", "①": "1", "\n": " ", "\t": " ", "A": "a"})
SINGLE = normalizers.Replace(Regex(" {2,}"), " ")
SHAPES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "Llama 2": lambda: bpe(normalizers.Sequence([normalizers.Prepend("▁"), replaced()]), None),
    "Mistral": lambda: bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "always": lambda: bpe(None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True)),
    "Gemma": lambda: bpe(replaced(), pre_tokenizers.Split(" ", "merged_with_previous")),
    "Phi 3": lambda: bpe(normalizers.Sequence([normalizers.Prepend("▁"), replaced()]), None, rstrip=True),
    "stripping": lambda: bpe(replaced(), None, lstrip=True, single_word=True),
    "T5": lambda: unigram(
        normalizers.Sequence([normalizers.Precompiled(MAP), normalizers.Strip(left=False), SINGLE]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ),
    "XLM-RoBERTa": lambda: unigram(
        normalizers.Sequence([normalizers.Precompiled(MAP), SINGLE]), pre_tokenizers.Metaspace(split=True)
    ),
    "unigram with bytes": lambda: unigram(
        normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="first", split=False), byte_fallback=True
    ),
}


def read(made: tokenizers.Tokenizer, **changes: Any) -> Tokenizer:
    file = FileMetadata(Path("folder"))
    file.fields = tokenizer_fields(json.loads(made.to_str()) | changes, SIZE, file.error)
    return Tokenizer(file)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    made = SHAPES[request.param]()
    return made, read(made)


@given(text=TEXTS | st.text(max_size=30))
def test_ids_are_those_of_the_package(pair: tuple[tokenizers.Tokenizer, Tokenizer], text: str) -> None:
    theirs, ours = pair
    assert ours.encode(text, add_bos=False) == theirs.encode(text, add_special_tokens=False).ids


@given(text=TEXTS)
def test_text_never_becomes_a_control_token(pair: tuple[tokenizers.Tokenizer, Tokenizer], text: str) -> None:
    theirs, ours = pair
    control = {theirs.token_to_id("<s>"), theirs.token_to_id("</s>")}
    assert not control & set(ours.encode(text, parse_special=False, add_bos=False))


@pytest.mark.parametrize(("template", "ends"), [("<s> $A", (True, False)), ("$A </s>", (False, True)), (None, (0, 0))])
def test_what_is_put_around_texts(template: str | None, ends: tuple[bool, bool]) -> None:
    made = SHAPES["T5"]()
    if template:
        special = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    file = FileMetadata(Path("folder"))
    file.fields = tokenizer_fields(json.loads(made.to_str()), SIZE, file.error)
    assert (file.fields["tokenizer.ggml.add_bos_token"], file.fields["tokenizer.ggml.add_eos_token"]) == ends


def test_added_tokens_that_the_model_has_not() -> None:
    made = SHAPES["Gemma"]()
    beyond = {"id": SIZE, "content": "<image>", "special": True, "normalized": False}
    ours = read(made, added_tokens=[*json.loads(made.to_str())["added_tokens"], beyond])
    assert ours.encode("a<image>", add_bos=False) == made.encode("a<image>", add_special_tokens=False).ids


def test_bytes_and_spaces_are_read_back() -> None:
    ours = read(SHAPES["Mistral"]())
    assert ours.decode(ours.encode("ab ü\n中", add_bos=False)) == "ab ü\n中"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "that is no base64"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "QUJD"}}, "is damaged, or replaces characters"),
        ({"normalizer": {"type": "BertNormalizer"}}, "a normalizer that is not supported"),
        ({"normalizer": None, "pre_tokenizer": None}, "has no ▁ stand for spaces"),
        ({"pre_tokenizer": {"type": "Punctuation"}}, "splits texts in a way that is not supported"),
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a"]]}}, "has a token without a score"),
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e400]]}}, "has a token without a score"),
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1.0]] * 500}}, "500 tokens, and the model 400"),
        ({"model": {"type": "Unigram", "vocab": [["a", 1.0]]}}, "no tokenizer.ggml.unknown_token_id"),
    ],
)
def test_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read(SHAPES["T5"](), **change)
    assert "\n" not in str(caught.value)


def test_a_table_that_makes_long_texts_is_refused() -> None:
    long = base64.b64encode(charsmap({"a": "x" * 65})).decode()
    with pytest.raises(ModelError, match="replaces characters by long texts"):
        read(SHAPES["T5"](), normalizer={"type": "Precompiled", "precompiled_charsmap": long})
