"""``wasmetal chat``: what comes out on which stream."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.command import wasmetal
from models.tiny import write_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose replies are noise."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


def reply(*arguments: object, **streams: str) -> str:
    done = wasmetal("chat", *arguments, "--device", "cpu", **streams)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_sampling_options_reach_the_guest(tiny: Path) -> None:
    arguments = (tiny, "-p", "hello world", "--max-tokens", 16)
    greedy = reply(*arguments, "--greedy")
    assert greedy == reply(*arguments, "--temperature", 0) == reply(*arguments, "--top-k", 1, "--temperature", 5)
    assert greedy == reply(*arguments, "--min-p", 1, "--temperature", 5)
    assert greedy == reply(*arguments, "--top-p", 0, "--temperature", 5)
    wild = ("--temperature", 100, "--top-k", 0, "--top-p", 1, "--min-p", 0)
    assert reply(*arguments, *wild, "--seed", 1) == reply(*arguments, *wild, "--seed", 1)
    assert reply(*arguments, *wild, "--seed", 1) != reply(*arguments, *wild, "--seed", 2)
    assert greedy != reply(*arguments, "--greedy", "--repeat-penalty", 100)


def test_prompt_options_reach_the_guest(tiny: Path) -> None:
    arguments = (tiny, "-p", "hello world", "--greedy", "--max-tokens", 16)
    plain = reply(*arguments)
    assert reply(*arguments, "--raw") != plain
    assert reply(*arguments, "--system", "You are a parrot.") != plain


def test_counters_end_with_what_was_copied(tiny: Path) -> None:
    *_, last = (lines := reply(tiny, "-p", "hello", "--max-tokens", 4, "--counters").splitlines())
    assert last == "bytes copied 0"
    shown = dict(line.rsplit(" ", 1) for line in lines[-7:])
    assert int(shown["submits"]) <= int(shown["host calls"])
    assert int(shown["bytes shared"]) > 0
    assert int(shown["dispatches"]) > 0


def test_conversation_from_standard_input(tiny: Path) -> None:
    done = wasmetal("chat", tiny, "--greedy", "--max-tokens", 4, "--device", "cpu", stdin="hello\nworld\n")
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) >= 2


def test_prompt_that_does_not_fit_is_the_guests_one_line(tiny: Path) -> None:
    done = wasmetal("chat", tiny, "--raw", "-p", "x" * 1000, "--device", "cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"chat: the prompt has 1000 tokens; the model's context is 256\n", done.stderr)


@pytest.mark.model
def test_the_capital_of_france(spec: str, smollm2: Path) -> None:
    arguments = ("--raw", "--greedy", "--max-tokens", 24, "-p", "The capital of France is")
    done = wasmetal("chat", smollm2, *arguments, "--device", spec)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(" Paris.")
