"""Model files whose header or vocabulary would take all time or memory, or make the tokenizer's library panic."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.probe import PAGE, Probe
from tests.models import tiny
from tests.security.peak import MIB, growth_below
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.host.errno import Errno
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.lm import tokenizer_byte_level, vocabulary
from wasmetal.models.lm.tokenizer import KINDS, Tokenizer
from wasmetal.models.lm.tokenizer_patterns import PRE_TOKENIZERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


class File:
    """A model file's metadata, without the file."""

    path = Path("hostile.gguf")

    def __init__(self, kind: str, tokens: list[str], types: list[int] | None = None, **fields: Any) -> None:
        self.fields = {"model": kind, "pre": "gpt-2", "tokens": tokens, "merges": [], **fields}
        self.fields["token_type"] = np.array(types or [NORMAL] * len(tokens), np.int32)
        self.fields.setdefault("scores", np.zeros(len(tokens), np.float32))

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self.fields.get(key.removeprefix("tokenizer.ggml."), default)
        assert value is default or type(value) is kind
        return value

    def require(self, key: str, kind: type) -> Any:
        return self.get(key, kind, None)

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self.path.name}: {what}")


def tokenizer(*args: Any, **fields: Any) -> Tokenizer:
    return Tokenizer(File(*args, **fields))  # type: ignore[arg-type]


# ---- Vocabularies


def test_many_control_tokens_take_linear_time() -> None:
    """A minute and more, if each were added by itself."""
    names = [f"<|{i:05d}|>" for i in range(30_000)]
    began = time.monotonic()
    made = tokenizer("gpt2", ["a", *names], [NORMAL] + [CONTROL] * len(names))
    assert time.monotonic() - began < 20
    assert made.encode("a<|00007|>a<|29999|>") == [0, 8, 0, 30_000]
    assert made.encode("a<|00007|>a", parse_special=False) != [0, 8, 0]


REACHABLE = {
    "a word": ("gpt2", ["s", "t", "o", "p", "st", "stop"], ["s t", "st op"], "llama-bpe"),
    "merges": ("gpt2", ["s", "t", "o", "p", "st", "op", "stop"], ["s t", "o p", "st op"], "gpt-2"),
    "scores": ("llama", ["s", "t", "o", "p", "st", "op", "stop", "▁", "▁stop"], [], ""),
    "listed merges": ("gemma4", ["s", "t", "o", "p", "st", "op", "stop"], ["s t", "o p", "st op"], ""),
    "best score": ("t5", ["s", "t", "o", "p", "▁", "stop", "▁stop"], [], ""),
    "a first part": ("bert", ["▁s", "top", "▁stop", "stop"], [], ""),
}


@pytest.mark.parametrize(("kind", "tokens", "merges", "pre"), REACHABLE.values(), ids=REACHABLE)
def test_text_is_no_control_token_even_if_it_is_spelled_like_a_word(
    kind: str, tokens: list[str], merges: list[str], pre: str
) -> None:
    types = [CONTROL if token in ("stop", "▁stop") else NORMAL for token in tokens]
    tokens, types = [*tokens, "o p", "?"], [*types, NORMAL, UNKNOWN]
    tokens += [] if "op" in tokens or kind == "bert" else ["op"]
    types += [NORMAL] * (len(tokens) - len(types))
    made = tokenizer(
        kind, tokens, types, merges=merges, pre=pre, add_space_prefix=True, unknown_token_id=types.index(UNKNOWN)
    )
    control = {i for i, each in enumerate(types) if each == CONTROL}
    for text in ("stop", " stop", "stop stop", "?stop?", "▁stop", "Ġstop"):
        assert not control & set(made.encode(text, parse_special=False, add_bos=False)), text
    assert control & set(made.encode("stop", add_bos=False))


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED])
@pytest.mark.parametrize("name", ["<|im_end|>", "<end_of_turn>", "</s>", "[/INST]", "<｜User｜>", "<|channel|>"])
def test_markup_is_control_whatever_the_file_says(name: str, kind: int) -> None:
    made = tokenizer("llama", ["▁", *sorted(set(name)), name], [NORMAL] * (1 + len(set(name))) + [kind])
    assert made.encode(name, add_bos=False)[-1:] == [len(made.tokens) - 1]
    assert len(made.tokens) - 1 not in made.encode(f"a {name}", parse_special=False, add_bos=False)


REFUSED: dict[str, tuple[Callable[[], File], str]] = {
    "a long token": (lambda: File("llama", ["a", "x" * 1025]), "a token of 1025 bytes; at most 1024 are supported"),
    "long characters": (lambda: File("gpt2", ["a", "€" * 342]), "a token of 1026 bytes"),
    "many tokens": (lambda: File("gpt2", [f"{i:x}" for i in range(2**19 + 1)]), "524289 tokens; at most 524288"),
    "many control tokens": (
        lambda: File("gpt2", [f"{i:05}" + "x" * 900 for i in range(1200)], [CONTROL] * 1200),
        "1086000 bytes of control and user-defined tokens; at most 1048576",
    ),
    "a, aa, aaa, …": (lambda: File("llama", ["a" * (i + 1) for i in range(500)]), "can be merged in too many ways"),
    "many long tokens": (lambda: File("llama", [f"{i:04}" * 250 for i in range(1000)]), "tokens are too long"),
    "bytes of merges": (lambda: File("gpt2", ["a", "aa"], merges=["a a"] * 12_000_000), "36000000 bytes of merges"),
    "a merge of no tokens": (lambda: File("gpt2", ["ab"], merges=["ab ab"]), "the merge 'ab ab' is not of two tokens"),
    "no byte": (lambda: File("llama", ["<0xZZ>"], [BYTE]), "'<0xZZ>' is no token for a byte, such as <0x0A>"),
    "a table of characters": (
        lambda: File("t5", ["a"], precompiled_charsmap=np.full(40, 255, np.uint8), unknown_token_id=0),
        "precompiled_charsmap is damaged",
    ),
    "a large table": (
        lambda: File("t5", ["a"], precompiled_charsmap=np.zeros(2**24, np.uint8), unknown_token_id=0),
        "a precompiled_charsmap of 16777216 bytes; at most 8388608",
    ),
    "no score": (
        lambda: File("t5", ["a"], scores=np.array([np.nan], np.float32), unknown_token_id=0),
        "scores has entries that are no numbers",
    ),
    "a large trie": (
        lambda: File("t5", [f"{i:05}" + "x" * 1000 for i in range(17_000)], unknown_token_id=0),
        "17085000 bytes of tokens; at most 16777216",
    ),
    "no unknown token": (lambda: File("bert", ["a"]), "the metadata has no tokenizer.ggml.unknown_token_id"),
    "one part twice": (lambda: File("bert", ["a", "▁##a"], unknown_token_id=0), "would be the same in a word"),
    "half a byte": (lambda: File("llama", ["<0x 4>"], [BYTE]), "'<0x 4>' is no token for a byte"),
}


@pytest.mark.parametrize(("file", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_in_time(file: Callable[[], File], said: str) -> None:
    made = file()
    began = time.monotonic()
    with pytest.raises(ModelError, match=f"^hostile.gguf: .*{said}"):
        Tokenizer(made)  # type: ignore[arg-type]
    assert time.monotonic() - began < 20


def test_a_panic_of_the_library_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge longer than any token makes it panic, which no ``except Exception`` catches."""
    monkeypatch.setattr(vocabulary.Vocabulary, "listed_merges", lambda self: [("ab", "ab")])
    with pytest.raises(ModelError, match=r"^hostile\.gguf: the vocabulary is inconsistent: .*range"):
        tokenizer("gpt2", ["ab"])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_the_librarys_passes(stop: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(*_: Any, **__: Any) -> None:
        raise stop

    monkeypatch.setattr(tokenizer_byte_level.models, "BPE", raise_it)
    with pytest.raises(stop):
        tokenizer("gpt2", ["a"])


PARTS = [
    "a",
    "b",
    "Ġ",
    "▁",
    " ",
    "\n",
    "<",
    "0x",
    ">",
    "é",
    "中",
    "😀",
    "\0",
    "<0x41>",
    "<0xZZ>",
    "<unk>",
    "▁▁",
    "ab",
    "Ċ",
]
TOKENS = st.lists(st.lists(st.sampled_from(PARTS), max_size=4).map("".join), min_size=1, max_size=30, unique=True)


@given(data=st.data(), tokens=TOKENS, kind=st.sampled_from(sorted(KINDS)))
def test_any_vocabulary_works_or_is_refused(data: st.DataObject, tokens: list[str], kind: str) -> None:
    if data.draw(st.booleans()):
        tokens += [token for byte in range(256) if (token := f"<0x{byte:02X}>") not in tokens]
    one = st.sampled_from(tokens)
    merges = st.one_of(st.tuples(one, one).map(" ".join), one.map(lambda token: f"{token[:1]} {token[1:]}"))
    ids = st.integers(-1, len(tokens))
    fields = {f"{name}_token_id": data.draw(ids) for name in ("bos", "eos", "unknown") if data.draw(st.booleans())}
    types = data.draw(
        st.lists(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 6, 99]), min_size=len(tokens), max_size=len(tokens))
    )
    scores = st.lists(st.floats(width=32), min_size=len(tokens), max_size=len(tokens))
    try:
        made = tokenizer(
            kind,
            tokens,
            types,
            pre=data.draw(st.sampled_from(sorted(PRE_TOKENIZERS))),
            merges=data.draw(st.lists(merges, max_size=5)),
            scores=np.array(data.draw(scores), np.float32),
            **fields,
        )
    except ModelError:
        return
    text = "".join(data.draw(st.lists(st.sampled_from(PARTS), max_size=30)))
    try:
        encoded = made.encode(text, parse_special=data.draw(st.booleans()))
    except ModelError:
        return
    assert all(0 <= i < len(tokens) for i in encoded)
    made.decode(encoded)


# ---- Text of tokens


@pytest.fixture
def long_pieces(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Probe]:
    """A guest with a model whose last token has 1 KiB."""
    tokens = [*tiny.vocabulary()[:-1], "x" * 1024]
    monkeypatch.setattr(tiny, "vocabulary", lambda: tokens)
    monkeypatch.setattr(tiny, "MERGES", tiny.MERGES[:-1])
    path = tiny.write_tiny_llama(tmp_path / "long.gguf")
    with load_model(path, device) as model, Probe(device, pages=16, models={"m": model}) as probe:
        probe.put(128, b"m")
        assert probe.model_open(128, 1, probe.OUT) == Errno.SUCCESS
        yield probe


def test_detokenizing_makes_no_text_of_gigabytes(long_pieces: Probe) -> None:
    model, last = long_pieces.u32(), len(tiny.vocabulary()) - 1
    for count, errno in ((100, Errno.SUCCESS), (16 * 1024 + 1, Errno.TOOBIG)):
        long_pieces.put(PAGE, np.full(count, last, np.uint32))
        assert long_pieces.model_detokenize(model, PAGE, count, 4 * PAGE, 2 * PAGE, 16) == errno
    assert long_pieces.bytes[4 * PAGE : 4 * PAGE + 100 * 1024].tobytes() == b"x" * 100 * 1024


# ---- Headers


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def array_of_strings(count: int, text: bytes) -> bytes:
    return (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string(b"k") + struct.pack("<IIQ", 9, 8, count) + string(text) * count
    )


def fields(count: int) -> bytes:
    each = b"".join(string(b"%x" % i) + b"\0\0\0\0\1" for i in range(count))
    return b"GGUF" + struct.pack("<IQQ", 3, 0, count) + each


def tensors(count: int) -> bytes:
    each = b"".join(string(b"%x" % i) + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i in range(count))
    return b"GGUF" + struct.pack("<IQQ", 3, count, 0) + each + bytes(64 + 32 * count)


HEADERS = {
    "strings": (lambda: array_of_strings(6_000_000, b"ab"), "6000000 strings; at most 2097152", 20),
    "the most strings": (lambda: array_of_strings(2**21, b"ab"), "1 fields, 0 tensors", 250),
    "strings of wide characters": (lambda: array_of_strings(2**20, "a😀".encode() * 10), "1 fields, 0 tensors", 380),
    "fields": (lambda: fields(1_000_000), "1000000 metadata fields; at most 65536", 20),
    "the most fields": (lambda: fields(2**16), "65536 fields, 0 tensors", 40),
    "tensors": (lambda: tensors(300_000), "300000 tensors and 0 metadata fields; at most 65536", 20),
    "the most tensors": (lambda: tensors(2**16), "0 fields, 65536 tensors", 80),
}


QUICK = ("the most strings", "fields")
ALL_HEADERS = [
    pytest.param(*header, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, header in HEADERS.items()
]


@pytest.mark.parametrize(("content", "said", "most"), ALL_HEADERS)
def test_headers_take_a_small_multiple_of_their_size(
    tmp_path: Path, content: Callable[[], bytes], said: str, most: int
) -> None:
    """``most``: MiB of memory."""
    path = tmp_path / "header.gguf"
    path.write_bytes(content())
    try:
        with growth_below(most * MIB):
            file = GGUFFile(path)
            result = f"{len(file.fields)} fields, {len(file.tensors)} tensors"
    except ModelError as error:
        result = str(error)
    assert said in result


def test_a_hostile_file_is_refused_by_all_who_load_it(
    tmp_path: Path, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "MERGES", ("hello nothing",))
    path = tiny.write_tiny_llama(tmp_path / "merge.gguf")
    with pytest.raises(ModelError, match="is not of two tokens into a third"):
        load_model(path, cpu)
    with pytest.raises(ModelError, match="is not of two tokens into a third"):
        Tokenizer(GGUFFile(path))
