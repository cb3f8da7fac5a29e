"""The tree search: what it finds, against one session for each branch, and what its branches share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, Guest, load_model
from wasmetal.device import Device
from wasmetal.models import Model

TREE = Path(__file__).parents[2] / "guests" / "tree.wasm"
PROMPT = "hello world and all the " * 8
FIGURES = re.compile(
    r"(\d+) branches from a prompt of (\d+) tokens hold (\d+) tokens, of which (\d+) were run; "
    r"(\d+) submissions, (\d+) kernels, (\d+) bytes copied by the host"
)
PAGE = 32
"""Tokens of a page of the KV cache."""


@pytest.fixture
def tiny(tmp_path: Path, cpu: Device) -> Iterator[Model]:
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=256)
    with load_model(path, cpu, contexts=32) as model:
        yield model


class Found(NamedTuple):
    lines: list[tuple[float, str]]
    figures: list[int]


def found(out: bytes) -> Found:
    *lines, figures = out.decode().splitlines()
    matched = FIGURES.fullmatch(figures)
    assert matched, figures
    return Found(
        [(float(score), json.loads(text)) for score, _, text in (line.partition(" ") for line in lines)],
        list(map(int, matched.groups())),
    )


def run(model: Model, *arguments: str) -> tuple[int, bytes, bytes]:
    out, errors = bytearray(), bytearray()
    with Guest(TREE, models={"default": model}, args=arguments, stdout=out.extend, stderr=errors.extend) as guest:
        return guest.run(), bytes(out), bytes(errors)


class Alone(NamedTuple):
    score: float
    text: str
    length: int


def alone(model: Model, prompt: list[int], branches: int, tokens: int) -> list[Alone]:
    """Each branch in a session of its own, from logits of the whole vocabulary."""
    logits = model.logits()
    scores = logits.numpy()

    def logprobs(ids: list[int]) -> np.ndarray:
        with model.session() as session:
            session.forward(ids, logits)
        shifted = scores.astype(np.float64) - scores.max()
        return np.asarray(shifted - np.log(np.exp(shifted).sum()))

    first = logprobs(prompt)
    made = []
    for begin in np.argsort(-first, kind="stable")[:branches]:
        chosen, total = [int(begin)], float(first[begin])
        while len(chosen) < tokens and chosen[-1] not in model.tokenizer.end_of_generation:
            after = logprobs(prompt + chosen)
            chosen.append(int(after.argmax()))
            total += float(after[chosen[-1]])
        text = [token for token in chosen if token not in model.tokenizer.end_of_generation]
        made.append(Alone(total / len(chosen), model.tokenizer.decode(text), len(chosen)))
    return made


def test_the_best_of_64_branches_that_share_the_prompts_pages(tiny: Model) -> None:
    prompt = tiny.tokenizer.encode(PROMPT)
    assert len(prompt) > 2 * PAGE
    expected = alone(tiny, prompt, 64, 4)
    tiny.reclaim()
    free = tiny.cache.free
    with Actor(TREE, models={"default": tiny}, args=["--tokens", "4", "--best", "64"]) as actor:
        search = found(actor.send(PROMPT).read())
        used = free - tiny.cache.free
        again = found(actor.send(PROMPT).read())
        assert free - tiny.cache.free == used  # those of the message before are closed
    best = sorted(expected, reverse=True)
    assert [score for score, _ in search.lines] == pytest.approx([branch.score for branch in best], abs=2e-4)
    assert sorted(text for _, text in search.lines) == sorted(branch.text for branch in best)
    assert again.lines == search.lines
    # The session holds all tokens of a branch but its last.
    added = [branch.length - 1 for branch in expected]
    held = sum(len(prompt) + more for more in added)
    assert search.figures[:4] == [64, len(prompt), held, len(prompt) + sum(added)]
    assert search.figures[4] == 1 + sum(added)
    assert search.figures[6] == 0
    # A branch has pages of its own from the first that it writes to on; the prompt's whole pages are there once.
    whole = len(prompt) // PAGE
    own = sum(-(-(len(prompt) + more) // PAGE) - whole for more in added if more)
    assert used == -(-len(prompt) // PAGE) + own
    assert used < 64 * whole


def test_as_a_command(tiny: Model) -> None:
    code, out, errors = run(tiny, "-p", PROMPT, "--branches", "7", "--tokens", "3", "--best", "2")
    assert (code, errors) == (0, b"")
    search = found(out)
    expected = sorted(alone(tiny, tiny.tokenizer.encode(PROMPT), 7, 3), reverse=True)
    assert [score for score, _ in search.lines] == pytest.approx([each.score for each in expected[:2]], abs=2e-4)
    assert search.figures[0] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "usage: tree"),
        (("-p",), 2, "usage: tree"),
        (("-p", "x", "--branches", "65"), 2, "--branches is a number from 1 to 64, not '65'"),
        (("-p", "x", "--tokens", "-1"), 2, "--tokens is a number from 1 to 1024, not '-1'"),
        (("-p", "x", "--best", "1x"), 2, "--best is a number from 1 to 64, not '1x'"),
        (("-p", "x", "--model", "other"), 1, "no model named 'other' was granted"),
        (("-p", ""), 1, "the prompt is empty"),
        (("-p", "x", "--tokens", "256"), 1, "tokens and 256 more do not fit the context of 256"),
    ],
)
def test_what_is_refused(tiny: Model, arguments: tuple[str, ...], code: int, said: str) -> None:
    exit_code, out, errors = run(tiny, *arguments)
    assert (exit_code, out) == (code, b"")
    assert said in errors.decode()
    assert errors.count(b"\n") == 1


def test_a_message_that_cannot_be_used_is_no_failure(tiny: Model) -> None:
    said = bytearray()
    arguments = ["--branches", "3", "--tokens", "2"]
    with Actor(TREE, models={"default": tiny}, args=arguments, stderr=said.extend) as actor:
        assert actor.send("").read() == b""
        assert actor.send("hello " * 300).read() == b""
        assert len(found(actor.send("hello").read()).lines) == 3
        snapshot = actor.freeze()
    assert said.decode().splitlines()[0] == "tree: the prompt is empty"
    assert "do not fit the context of 256" in said.decode()
    with Actor.thaw(snapshot, TREE, models={"default": tiny}) as actor:
        assert len(found(actor.send("hello").read()).lines) == 3


@pytest.mark.model
def test_the_real_model(smollm2: Path, cpu: Device) -> None:
    prompt = "The capital of France is"
    with load_model(smollm2, cpu) as model:
        code, out, errors = run(model, "-p", prompt, "--tokens", "3")
        assert (code, errors) == (0, b"")
        search = found(out)
        tokens = len(model.tokenizer.encode(prompt))
    assert " Paris" in search.lines[0][1]
    assert [score for score, _ in search.lines] == sorted((score for score, _ in search.lines), reverse=True)
    count, length, held, ran, *_, copied = search.figures
    assert (count, length, copied) == (64, tokens, 0)
    assert held - ran == 63 * tokens  # run once for 64 branches
