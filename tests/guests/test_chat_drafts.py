"""The chat guest with drafts: the same answers, in fewer passes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.guests.scripted import END, ScriptedModel, ScriptedSession, stats
from tests.guests.test_chat_guest import Ran
from tests.models.tiny import write_tiny_llama
from wasmetal import load_model
from wasmetal.device import Device

LOOKED_UP = ("--draft-tokens", "4")
DRAFTED = (*LOOKED_UP, "--draft-model", "draft")
NEEDS = "--draft-tokens needs --greedy or a --top-k of 1 to 64, and no --repeat-penalty"
SONG = b"la la la, and la la la again\n"


class ChatMl(ScriptedModel):
    """Its template ends turns with END, so that what was said before holds it."""

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        self.conversations.append(list(messages))
        return "^" + "".join(f"{each['role'][0]}:{each['content']}<|im_end|>" for each in messages) + "a:"


# ---- Against models that say what they are told to


@pytest.mark.parametrize("most", range(1, 16))
def test_looked_up_drafts_change_nothing_but_the_number_of_passes(most: int) -> None:
    plain, drafting = ChatMl(SONG, SONG), ChatMl(SONG, SONG)
    expected = Ran(plain, "--stats", stdin=b"sing\nagain\n")
    ran = Ran(drafting, "--stats", "--draft-tokens", str(most), stdin=b"sing\nagain\n")
    assert ran.out == expected.out == SONG * 2
    before, after = stats(expected.err), stats(ran.err)
    for name in ("context_tokens", "prefill_tokens", "decode_tokens"):
        assert before[name] == after[name]
    assert before["drafted_tokens"] == before["accepted_tokens"] == 0
    assert 0 < after["accepted_tokens"] < after["drafted_tokens"]
    # An end that was guessed right is not run.
    saved = len(plain.forwards) - len(drafting.forwards)
    assert after["accepted_tokens"] - 2 <= saved <= after["accepted_tokens"]
    assert max(map(len, drafting.forwards[1:])) <= max(1 + most, len(b"<|im_end|>u:again<|im_end|>a:"))


def test_an_end_inside_a_draft_ends_the_answer() -> None:
    model = ChatMl(b"yes, yes", b"yes, yes", b"no")
    ran = Ran(model, "--stats", "--draft-tokens", "15", stdin=b"one\ntwo\nthree\n")
    assert ran.out == b"yes, yes\nyes, yes\nno\n"
    assert [message["content"] for message in model.conversations[2]] == ["one", "yes, yes", "two", "yes, yes", "three"]
    ended = [tokens for tokens in model.forwards if tokens[-1] == END]
    assert ended  # the draft of the second answer ends with it


@pytest.mark.parametrize("draft", [None, SONG, SONG.replace(b"and", b"und"), b"x" * 100])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 11, len(SONG), len(SONG) + 1])
def test_max_tokens(count: int, draft: bytes | None) -> None:
    arguments = ("--raw", "-p", "la la", "--stats", "--max-tokens", str(count))
    plain, drafting = ScriptedModel(SONG), ScriptedModel(SONG)
    expected = Ran(plain, *arguments)
    ran = Ran(drafting, *arguments, *(DRAFTED if draft else LOOKED_UP), draft=draft and ScriptedModel(draft))
    assert ran.out == expected.out == SONG[:count].rstrip(b"\n") + b"\n"
    for name in ("context_tokens", "decode_tokens"):
        assert stats(ran.err)[name] == stats(expected.err)[name]


@pytest.mark.parametrize("context", range(11, 24))
@pytest.mark.parametrize("drafts", [LOOKED_UP, DRAFTED])
def test_a_full_context_ends_the_reply(context: int, drafts: tuple[str, ...]) -> None:
    model = ScriptedModel(b"a" * 100, context=context)  # it raises if it gets more
    ran = Ran(model, "--raw", "-p", "0123456789", *drafts, draft=ScriptedModel(b"a" * 100, context=context))
    assert (ran.code, ran.out) == (0, b"a" * (context - 9) + b"\n")


@pytest.mark.parametrize("context", range(1, 40, 3))
def test_a_draft_model_with_a_small_context_stops_drafting(context: int) -> None:
    ran = Ran(ScriptedModel(SONG), "--raw", "-p", "0123456789", *DRAFTED, draft=ScriptedModel(SONG, context=context))
    assert (ran.code, ran.out) == (0, SONG)


def test_a_draft_model_that_says_the_same_is_always_right() -> None:
    model, draft = ScriptedModel(SONG, b"bye"), ScriptedModel(SONG, b"bye")
    ran = Ran(model, "--stats", *DRAFTED, stdin=b"sing\nleave\n", draft=draft)
    numbers = stats(ran.err)
    assert ran.out == SONG + b"bye\n"
    assert numbers["accepted_tokens"] == numbers["drafted_tokens"]
    rounds = -(-len(SONG) // 5) + 1  # of a drawn token and 4 guessed ones
    assert len(model.forwards) == 1 + rounds - 1 + 1 + 1


def test_drafts_that_are_wrong_cost_nothing_but_time() -> None:
    ran = Ran(ScriptedModel(SONG), "-p", "sing", "--stats", *DRAFTED, draft=ScriptedModel(b"x" * 100))
    assert ran.out == SONG
    assert stats(ran.err)["accepted_tokens"] == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--draft-tokens", "16"], 2, "--draft-tokens is a number from 0 to 15, not '16'"),
        (["--draft-tokens", "-1"], 2, "--draft-tokens is a number from 0 to 15, not '-1'"),
        (["--draft-model", "draft"], 2, "--draft-model needs --draft-tokens, how many tokens it drafts at a time"),
        ([*LOOKED_UP, "--draft-model", "other"], 1, "no model named 'other' was granted"),
        (DRAFTED, 1, "the draft model 'draft' has 300 tokens in its vocabulary, and the model has 258"),
        *(
            ([*LOOKED_UP, *sampling], 1, NEEDS)
            for sampling in (["--top-k", "0"], ["--top-k", "65"], ["--greedy", "--repeat-penalty", "1.1"])
        ),
    ],
)
def test_what_cannot_be_drafted_is_refused(args: Sequence[str], code: int, message: str) -> None:
    other = ScriptedModel(b"a")
    other.vocab_size = 300
    ran = Ran(ScriptedModel(b"a"), "-p", "x", *args, draft=other)
    assert (ran.code, ran.out, ran.err.decode()) == (code, b"", f"chat: {message}\n")


# ---- Against models whose next token is random


class MarkovModel(ScriptedModel):
    """The token after one of b"abcd" is another of those, as likely as ``table`` says."""

    def __init__(self, table: np.ndarray, context: int = 6000) -> None:
        super().__init__(context=context)
        self.table = table

    def session(self, holder: None) -> MarkovSession:
        return MarkovSession(self)


class MarkovSession(ScriptedSession):
    def __init__(self, model: MarkovModel) -> None:
        super().__init__(model)
        self.table, self.tokens = model.table, [0]

    def steps(self, tokens: Sequence[int], logits: Any) -> Generator[None]:
        yield
        self.model.forwards.append(list(tokens))
        self.tokens += tokens
        self.length += len(tokens)
        for top, token in zip(logits, self.tokens[-len(logits) :], strict=True):
            values = np.full(self.model.vocab_size, -np.inf)
            values[[*b"abcd"]] = np.log(self.table[b"abcd".find(token)])
            top.ids[:] = np.argsort(-values, kind="stable")[: len(top.ids)]
            top.values[:] = values[top.ids]

    def truncate(self, length: int) -> None:
        super().truncate(length)
        del self.tokens[1 + length :]


def table(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(4), 4)


SAMPLING = ("--raw", "-p", "a", "--temperature", "1", "--top-k", "40", "--top-p", "1", "--min-p", "0")


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_seed_gives_the_same_text_with_and_without_lookup(seed: str) -> None:
    arguments = (*SAMPLING, "--max-tokens", "200", "--seed", seed, "--stats")
    plain, drafting = Ran(MarkovModel(table(0)), *arguments), Ran(MarkovModel(table(0)), *arguments, *LOOKED_UP)
    assert drafting.out == plain.out
    assert 0 < stats(drafting.err)["accepted_tokens"] < stats(drafting.err)["drafted_tokens"]


@pytest.mark.parametrize("draft", [0, 1])
def test_a_draft_model_leaves_the_distribution_as_it_is(draft: int) -> None:
    target, count = table(0), 5000
    ran = Ran(
        *(MarkovModel(target), *SAMPLING, "--max-tokens", str(count), "--seed", "1", "--stats", *DRAFTED),
        draft=MarkovModel(table(draft)),
    )
    said = np.array([b"abcd".find(token) for token in b"a" + ran.out.strip()])
    assert len(said) == 1 + count
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (said[:-1], said[1:]), 1)
    many = pairs.sum(axis=1, keepdims=True)
    assert (np.abs(pairs - many * target) <= 4.5 * np.sqrt(many * target * (1 - target))).all()
    numbers = stats(ran.err)
    if draft == 0:  # the same model
        assert numbers["accepted_tokens"] == numbers["drafted_tokens"]
    else:
        assert numbers["accepted_tokens"] < numbers["drafted_tokens"]


# ---- Against a real engine


@pytest.fixture(scope="module")
def tiny(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=48)
    with load_model(path, device, contexts=4) as model:  # for it has two names here, and each a share
        yield model


@pytest.fixture(scope="module")
def other(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "other.gguf", seed=1, blocks=1, context=30)
    with load_model(path, device) as model:
        yield model


@pytest.mark.slow_on("vulkan")
@pytest.mark.parametrize("args", [("--raw", "-p", "hello hello hello"), ("-p", "the world", "--max-tokens", "20")])
def test_greedy_text_is_the_same_with_drafts(tiny: Any, other: Any, args: tuple[str, ...]) -> None:
    """Up to the context's end, and with a draft model whose context ends before."""
    plain = Ran(tiny, "--greedy", "--stats", *args)
    for drafts, draft in ((LOOKED_UP, None), (DRAFTED, tiny), (DRAFTED, other)):
        ran = Ran(tiny, "--greedy", "--stats", *args, *drafts, draft=draft)
        assert ran.out == plain.out
        numbers = stats(ran.err)
        assert numbers["context_tokens"] == stats(plain.err)["context_tokens"]
        assert ran.counters.bytes_copied == 0
        if draft is tiny:
            assert numbers["accepted_tokens"] == numbers["drafted_tokens"] > 0
