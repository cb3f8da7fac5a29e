"""The guests that `wasmetal serve` makes models of, by themselves."""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, ActorProgram, Dir, load_model
from wasmetal.device import Device
from wasmetal.errors import GuestError
from wasmetal.models import Model
from wasmetal.models.lm.prompt import prompt_tokens

GUESTS = Path(__file__).parents[2] / "guests"
QUESTION = [{"role": "user", "content": "hello"}]
OFTEN = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cpu: Device) -> Iterator[Model]:
    path = write_tiny_llama(tmp_path_factory.mktemp("endpoint") / "tiny.gguf", context=4096, blocks=1)
    with load_model(path, cpu, contexts=4) as model:
        yield model


@pytest.fixture(scope="module")
def converse(model: Model) -> Iterator[Actor]:
    with Actor(GUESTS / "converse.wasm", models={"default": model}) as actor:
        yield actor


def texts() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
        ["<|im_end|>", '"\\/\b\f\n\r\t', "\U0001f680 é \x00\x1f"]
    )


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts()), max_size=4), texts(), st.booleans(), texts()
)
@OFTEN
def test_what_the_model_gets_is_what_the_host_makes_of_the_messages(
    converse: Actor, model: Model, before: list[tuple[str, str]], question: str, ascii_only: bool, other: str
) -> None:
    messages = [{"role": role, "content": text} for role, text in [*before, ("user", question)]]
    request: dict[str, Any] = {"others": [{"a": [other]}, -1.5e3, True, None], "messages": messages, "max_tokens": 1}
    counts = converse.token_counts
    reply = converse.send(json.dumps(request, ensure_ascii=ascii_only)).read()
    assert b"error" not in reply.partition(b"\0")[2]
    assert model.chat_template
    assert (converse.token_counts - counts).prompt == len(prompt_tokens(model.tokenizer, model.chat_template, messages))


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"messages": []}',
        b'{"messages": [{"role": "user", "content": "hello"}]',
        b'{"messages": [{"role": "user", "content": "hello"]}}',
        b'{"messages": [{"role": "user", "content": "hello"},]}',
        b'{"messages": [{"role": "user", "content": "hello}]}',
        b'{"messages": [{"role": "user", "content": "\\x"}]}',
        b'{"messages": [{"role": "user", "content": "\\u12g4"}]}',
        b'{"messages": [{"role": "user", "content": "a\nb"}]}',
        b'{"messages": [{"role": "user", "content": 3}]}',
        b'{"messages": [{"role": "cook", "content": "hello"}]}',
        b'{"messages": [{"role": "assistant", "content": "hello"}]}',
        b'{"messages": [{"role": "user", "content": "hello"}], "max_tokens": "many"}',
        b'{"messages": [{"role": "user", "content": "hello"}], "x": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"messages": [{"role": "user", "content": "hello"}]} {}',
    ],
)
def test_what_is_no_request_is_refused(model: Model, request_: bytes) -> None:
    pieces: list[bytes] = []
    with Actor(GUESTS / "converse.wasm", models={"default": model}) as actor, pytest.raises(GuestError, match="exit"):
        pieces.extend(actor.send(request_))
    text, _, about = b"".join(pieces).partition(b"\0")
    assert text == b""
    assert "the messages must be" in json.loads(about)["error"]


def words(text: str) -> list[str]:
    return re.findall("[0-9a-z]+", text.lower())


def ranked(files: dict[str, str], question: str) -> list[str]:
    """By BM25, as in S. Robertson and H. Zaragoza, 2009, with k1 = 1.2 and b = 0.75."""
    found = {name: Counter(words(text)) for name, text in files.items() if words(text)}
    mean = sum(each.total() for each in found.values()) / max(1, len(found))

    def score(name: str) -> float:
        total = 0.0
        for term in set(words(question)):
            n = sum(term in each for each in found.values())
            times, length = found[name][term], found[name].total()
            total += (
                math.log(1 + (len(found) - n + 0.5) / (n + 0.5))
                * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / mean))
            )  # fmt: skip
        return total

    scores = {name: score(name) for name in found}
    return sorted((name for name in found if scores[name] > 0), key=lambda name: (-round(scores[name], 9), name))[:3]


@pytest.fixture(scope="module")
def retrieve() -> ActorProgram:
    return ActorProgram(GUESTS / "retrieve.wasm")


@given(
    st.dictionaries(
        st.text(string.ascii_lowercase, min_size=1, max_size=6),
        st.lists(st.sampled_from(["cat", "Dog", "mat", "sat", "the", "THE.", "a1"]), min_size=1, max_size=30),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.sampled_from(["cat", "dog", "mat", "the", "zebra"]), min_size=1, max_size=5),
)
@settings(OFTEN, max_examples=20)
def test_passages_are_ranked_by_bm25(
    retrieve: ActorProgram,
    model: Model,
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, list[str]],
    question: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("docs")
    named = {f"{name}.txt": " ".join(said) for name, said in files.items()}
    for name, text in named.items():
        (folder / name).write_text(text)
    request = {"messages": [{"role": "user", "content": " ".join(question)}], "max_tokens": 1}
    with Actor(retrieve, models={"default": model}, dirs={"/docs": Dir(folder, read_only=True)}) as actor:
        said = actor.send(json.dumps(request)).read().partition(b"\0")[0].decode(errors="replace")
        actor.freeze()  # no file is left open
    assert said.partition("\n\nFrom: ")[2] == ", ".join(ranked(named, " ".join(question)))


def test_long_texts_are_cut_into_passages(retrieve: ActorProgram, model: Model, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("needle in here " + "x" * 900_000)
    (tmp_path / "many.md").write_text("\n\n".join(f"paragraph {number}. " + "word " * 60 for number in range(400)))
    (tmp_path / "large.txt").write_bytes(b"needle " * 200_000)  # more than 1 MiB
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    request = {"messages": [{"role": "user", "content": "needle in paragraph 377"}], "max_tokens": 1}
    with Actor(retrieve, models={"default": model}, dirs={"/docs": Dir(tmp_path, read_only=True)}) as actor:
        said = actor.send(json.dumps(request)).read().partition(b"\0")[0].decode(errors="replace")
        assert said.partition("\n\nFrom: ")[2] == "long.txt, many.md"
        assert actor.token_counts.prompt < 4096
