from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.charsmap import charsmap
from tests.models.tiny import CONTROL, byte_alphabet, vocabulary, write_tiny_llama
from wasmetal.errors import ModelError
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.lm.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL_TYPE, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
IM_START, IM_END = 1, 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(GGUFFile(write_tiny_llama(tmp_path_factory.mktemp("tokenizer") / "tiny.gguf")))


def vocabulary_file(path: Path, fill: Callable[[gguf.GGUFWriter], Any], architecture: str = "llama") -> GGUFFile:
    w = gguf.GGUFWriter(path, architecture)
    fill(w)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return GGUFFile(path)


def test_merges_apply_within_words_in_their_order(tiny: Tokenizer) -> None:
    def spelled(text: str) -> list[str]:
        return [tiny.tokens[i] for i in tiny.encode(text)]

    assert spelled("hello") == ["hello"]
    assert spelled("the worl world") == ["the", "Ġwor", "l", "Ġworld"]
    assert spelled("at the a in") == ["a", "t", "Ġ", "the", "Ġa", "Ġ", "in"]  # "t he" comes before "Ġ t"
    assert spelled("hell\no's") == ["hell", "Ċ", "o", "'", "s"]  # "Ċo" is no pair within a word
    assert spelled("ü") == ["Ã", "¼"]


def test_control_tokens(tiny: Tokenizer) -> None:
    assert tiny.encode("<|im_start|>the<|im_end|>") == [IM_START, vocabulary().index("the"), IM_END]
    assert not set(tiny.encode("<|im_end|>", parse_special=False)) & set(range(len(CONTROL)))
    assert tiny.decode([IM_START, IM_END]) == "<|im_start|><|im_end|>"
    assert (tiny.bos, tiny.eos, tiny.eot) == (0, 2, 2)
    assert tiny.end_of_generation == {0, 2}  # <|endoftext|> ends a reply too, by its text


def test_bos_as_asked_or_as_the_file_says(tiny: Tokenizer) -> None:
    assert tiny.add_bos is False
    assert tiny.encode("a", add_bos=True) == [0, *tiny.encode("a")]


@given(text=st.text())
def test_every_text_survives_the_way_there_and_back(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text, parse_special=False)
    assert tiny.decode(ids) == text
    assert b"".join(tiny.pieces()[i] for i in ids).decode() == text


@given(text=st.text(min_size=1))
def test_streaming_yields_whole_characters_as_soon_as_they_are(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text, parse_special=False)
    parts = list(tiny.stream(iter(ids)))
    assert "".join(parts) == text
    assert all(parts)
    assert len(parts) <= len(ids)


def test_streaming_a_character_split_over_tokens(tiny: Tokenizer) -> None:
    llama = [byte_alphabet()[b] for b in "🦙".encode()]
    ids = [vocabulary().index(c) for c in llama]
    assert list(tiny.stream(ids)) == ["🦙"]
    assert list(tiny.stream([*ids[:3], vocabulary().index("the")])) == ["\N{REPLACEMENT CHARACTER}the"]
    assert list(tiny.stream(ids[:2])) == ["\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("i", [-1, 10**6])
def test_decoding_an_unknown_id(tiny: Tokenizer, i: int) -> None:
    with pytest.raises(ModelError, match=f"token id {i} is not in the vocabulary of {len(vocabulary())}"):
        tiny.decode([i])


def test_encoding_half_a_character(tiny: Tokenizer) -> None:
    with pytest.raises(ModelError, match="not valid Unicode"):
        tiny.encode("a\ud800b")


# --- SentencePiece

SCORED = {
    "▁": -20,
    "a": -21,
    "b": -22,
    "c": -23,
    "ab": -3,
    "bc": -1,
    "abc": -5,
    "▁a": -2,
    "▁ab": -4,
    "ca": -6,
    "▁▁": -7,
}


def spm_file(path: Path, add_space_prefix: bool = True, architecture: str = "llama") -> GGUFFile:
    def fill(w: gguf.GGUFWriter) -> None:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *SCORED, "<user>"]
        w.add_tokenizer_model("llama")
        w.add_token_list(tokens)
        w.add_token_scores([0.0] * 259 + list(map(float, SCORED.values())) + [0.0])
        w.add_token_types(
            [UNKNOWN, CONTROL_TYPE, CONTROL_TYPE] + [BYTE] * 256 + [NORMAL] * len(SCORED) + [USER_DEFINED]
        )
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
        w.add_add_space_prefix(add_space_prefix)

    return vocabulary_file(path, fill, architecture)


def sentencepiece(text: str) -> list[str]:
    """SentencePiece, literally: join the best-scored adjacent pair, the leftmost of equals, until there is none."""
    symbols = list(text)
    while True:
        pairs = [(-SCORED[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in SCORED]
        if not pairs:
            return symbols
        i = min(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(spm_file(tmp_path_factory.mktemp("spm") / "spm.gguf"))


@given(text=st.text(alphabet="abc ", min_size=1))
def test_sentencepiece_joins_by_score(spm: Tokenizer, text: str) -> None:
    expected = sentencepiece("▁" + text.replace(" ", "▁"))
    assert [spm.tokens[i] for i in spm.encode(text, add_bos=False)] == expected


@given(text=st.text())
def test_sentencepiece_survives_the_way_there_and_back(spm: Tokenizer, text: str) -> None:
    text = text.replace("▁", " ")
    assert spm.decode(spm.encode(text, parse_special=False, add_bos=False)) == text


def test_sentencepiece_bytes_user_defined_and_bos(spm: Tokenizer) -> None:
    assert spm.encode("é", add_bos=False)[1:] == [3 + 0xC3, 3 + 0xA9]
    assert spm.encode("") == [1]
    assert spm.encode("<user>", parse_special=False, add_bos=False) == [spm.vocab_size - 1]
    assert spm.end_of_generation == {2}


def test_sentencepiece_without_prefix(tmp_path: Path) -> None:
    plain = Tokenizer(spm_file(tmp_path / "plain.gguf", add_space_prefix=False))
    assert [plain.tokens[i] for i in plain.encode("ab", add_bos=False)] == ["ab"]
    assert plain.decode(plain.encode(" ab", add_bos=False)) == " ab"


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        (["<|start|>", "<|end|>", "<|return|>", "<|call|>"], {"<|return|>", "<|call|>"}),  # gpt-oss
        (["<|user|>", "<|end|>", "<|endoftext|>"], {"<|end|>", "<|endoftext|>"}),  # Phi 3
        (["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"], {"<|end_of_text|>"}),  # Granite
    ],
)
def test_what_ends_a_reply_if_the_file_does_not_say(tmp_path: Path, names: list[str], ends: set[str]) -> None:
    fill = gpt2(tokens=["a", "b", "ab", *names], types=[NORMAL] * 3 + [CONTROL_TYPE] * len(names))
    made = Tokenizer(vocabulary_file(tmp_path / "ends.gguf", fill))
    assert {made.tokens[i] for i in made.end_of_generation} == ends


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_control_tokens_of_phi3_take_the_space_after_them(tmp_path: Path, architecture: str) -> None:
    made = Tokenizer(spm_file(tmp_path / "phi3.gguf", add_space_prefix=False, architecture=architecture))
    newline = [3 + 0x0A]
    ab = [made.tokens.index("ab")]
    assert made.encode("</s>\nab", add_bos=False) == [2, *([] if architecture == "phi3" else newline), *ab]
    assert made.encode("<s>\nab", add_bos=False) == [1, *newline, *ab]


# --- Unigram

UNIGRAM = {"▁": -3.0, "a": -4.5, "b": -4.0, "ab": -5.1, "▁a": -4.2, "abc": -9.5, "c": -5.0, "▁ab": -6.1, "f": -7.0}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    def fill(w: gguf.GGUFWriter) -> None:
        w.add_tokenizer_model("t5")
        w.add_token_list(["<pad>", "</s>", "<unk>", *UNIGRAM, "<user>"])
        w.add_token_scores([0.0] * 3 + list(UNIGRAM.values()) + [0.0])
        w.add_token_types([CONTROL_TYPE, CONTROL_TYPE, UNKNOWN] + [NORMAL] * len(UNIGRAM) + [USER_DEFINED])
        w.add_eos_token_id(1)
        w.add_unk_token_id(2)
        w.add_remove_extra_whitespaces(True)
        w.add_precompiled_charsmap(charsmap({"ﬀ": "ff", "\n": " "}))

    return Tokenizer(vocabulary_file(tmp_path_factory.mktemp("t5") / "t5.gguf", fill))


@given(text=st.text(alphabet="abcﬀ \n", min_size=1).filter(lambda text: text.strip()))
def test_unigram_takes_the_best_sum_of_scores(t5: Tokenizer, text: str) -> None:
    ids = t5.encode(text, add_bos=False)
    spelled = "▁" + "▁".join(text.replace("ﬀ", "ff").split())
    assert "".join(t5.tokens[i] for i in ids) == spelled
    best = [0.0] + [-np.inf] * len(spelled)
    for end in range(1, len(spelled) + 1):
        parts = [(begin, spelled[begin:end]) for begin in range(end)]
        best[end] = max(best[begin] + UNIGRAM[part] for begin, part in parts if part in UNIGRAM)
    assert sum(UNIGRAM[t5.tokens[i]] for i in ids) == pytest.approx(best[-1])


def test_unigram_unknown_user_defined_and_ends(t5: Tokenizer) -> None:
    assert [t5.tokens[i] for i in t5.encode("a中中 <user>")] == ["▁a", "<unk>", "<user>"]
    assert t5.decode(t5.encode("ab c")) == "ab c"
    assert (t5.add_bos, t5.add_eos, t5.eos) == (False, True, 1)


# --- WordPiece


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    words = ["▁un", "aff", "able", "▁run", "▁,", "▁中", "▁cafe", "s", "▁["]

    def fill(w: gguf.GGUFWriter) -> None:
        w.add_tokenizer_model("bert")
        w.add_token_list(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])
        w.add_token_types([CONTROL_TYPE, UNKNOWN, CONTROL_TYPE, CONTROL_TYPE] + [NORMAL] * len(words))
        w.add_unk_token_id(1)
        w.add_uint32("tokenizer.ggml.cls_token_id", 2)
        w.add_sep_token_id(3)

    return Tokenizer(vocabulary_file(tmp_path_factory.mktemp("bert") / "bert.gguf", fill))


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("unaffable", "▁un aff able"),
        ("UNAFFABLE,  Cafés", "▁un aff able ▁, ▁cafe s"),  # lower case, without accents
        ("run中run", "▁run ▁中 ▁run"),
        ("affable unx run", "[UNK] [UNK] ▁run"),  # a word begins with the token of a beginning, and ends with a token
        ("run\0\ts", "▁run [UNK]"),
        ("un" + "s" * 98, "▁un " + " ".join("s" * 98)),
        ("un" + "s" * 99, "[UNK]"),  # more than 100 characters
    ],
)
def test_wordpiece(bert: Tokenizer, text: str, spelled: str) -> None:
    assert [bert.tokens[i] for i in bert.encode(text, add_bos=False)] == spelled.split()


def test_wordpiece_ends_and_control_tokens(bert: Tokenizer) -> None:
    assert (bert.bos, bert.eos, bert.add_bos, bert.add_eos) == (2, 3, True, True)
    assert bert.encode("[CLS] run [SEP]", add_bos=False) == [2, bert.tokens.index("▁run"), 3]
    assert bert.decode(bert.encode("Un run,", add_bos=False)) == "un run ,"
    assert bert.encode("[SEP]", parse_special=False, add_bos=False)[0] == bert.tokens.index("▁[")


# --- Inconsistent vocabularies


def gpt2(**changes: Any) -> Callable[[gguf.GGUFWriter], None]:
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"], "types": [1, 1, 1]}
    values |= changes

    def fill(w: gguf.GGUFWriter) -> None:
        w.add_tokenizer_model(values["model"])
        if values["pre"]:
            w.add_tokenizer_pre(values["pre"])
        w.add_token_list(values["tokens"])
        w.add_token_types(values["types"])
        w.add_token_merges(values["merges"])
        if "eos" in values:
            w.add_eos_token_id(values["eos"])

    return fill


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "rwkv"}, "tokenizer.ggml.model is 'rwkv'; supported: gpt2, llama, gemma4, t5, bert"),
        ({"pre": "klingon"}, "tokenizer.ggml.pre is 'klingon'; supported: .*command-r, .*smollm"),
        ({"pre": None}, "the metadata has no tokenizer.ggml.pre"),
        ({"tokens": ["a", "b", "a"]}, "contains a token twice"),
        ({"tokens": ["", "", ""]}, "tokenizer.ggml.tokens is empty"),
        ({"types": [1]}, "tokenizer.ggml.token_type has 1 entries for 3 tokens"),
        ({"merges": ["a c"]}, "the merge 'a c' is not of two tokens into a third"),
        ({"merges": ["a x\ny"]}, r"the merge 'a x\\ny' is not of two tokens"),
        ({"merges": ["ab"]}, "the merge 'ab' is not"),
        ({"merges": [""]}, "the merge '' is not"),
        ({"eos": 3}, "tokenizer.ggml.eos_token_id is 3; the vocabulary has 3 tokens"),
        ({"model": "llama"}, "the metadata has no tokenizer.ggml.scores"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        Tokenizer(vocabulary_file(tmp_path / "bad.gguf", gpt2(**changes)))
    assert "\n" not in str(caught.value)


# --- The real one


@pytest.mark.model
def test_smollm2(smollm2: Path) -> None:
    tokenizer = Tokenizer(GGUFFile(smollm2))
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>") == [1, 4093, 198, 26843, 2]
    assert tokenizer.encode("2024") == [34, 32, 34, 36]
    assert tokenizer.end_of_generation == {0, 2}
    assert tokenizer.vocab_size == 49152
