"""``wasmetal chat``: what comes out on which stream."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.command import wasmetal
from tests.models.tiny import write_tiny_llama
from wasmetal.cli import app


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose replies are noise."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


def reply(*arguments: object, stdin: str = "") -> str:
    done = CliRunner().invoke(app, ["chat", *map(str, arguments), "--device", "cpu"], input=stdin)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout_bytes.decode(errors="backslashreplace")  # random models say what is no UTF-8


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


def test_drafts_change_nothing_that_is_said(tiny: Path) -> None:
    arguments = (tiny, "-p", "hello world", "--greedy", "--max-tokens", 16)
    plain = reply(*arguments)
    assert plain == reply(*arguments, "--draft-tokens", 4)
    assert plain == reply(*arguments, "--draft-tokens", 4, "--draft-model", tiny)
    done = wasmetal("chat", *arguments, "--draft-model", tiny, "--device", "cpu")
    assert (done.returncode, done.stderr) == (
        2,
        "chat: --draft-model needs --draft-tokens, how many tokens it drafts at a time\n",
    )


def test_counters_end_with_what_was_copied(tiny: Path) -> None:
    *_, last = (lines := reply(tiny, "-p", "hello", "--max-tokens", 4, "--counters").splitlines())
    assert last == "bytes copied 0"
    shown = dict(line.rsplit(" ", 1) for line in lines[-7:])
    assert int(shown["submits"]) <= int(shown["host calls"])
    assert int(shown["bytes shared"]) > 0
    assert int(shown["dispatches"]) > 0


def test_stats_are_json_on_standard_error(tiny: Path) -> None:
    done = wasmetal("chat", tiny, "--greedy", "--max-tokens", 4, "-p", "hello", "--stats", "--device", "cpu")
    assert done.returncode == 0
    numbers = json.loads(done.stderr)
    assert numbers["decode_tokens"] == 3  # the fourth is said, not run
    assert numbers["context_tokens"] == numbers["prefill_tokens"] + 3
    assert numbers["context_length"] == 256
    assert done.stdout == reply(tiny, "--greedy", "--max-tokens", 4, "-p", "hello")


@pytest.mark.parametrize(
    ("option", "value", "least", "most"),
    [
        ("--max-tokens", "0", "1", "4294967295"),
        ("--seed", "-1", "0", "9007199254740992"),
        ("--temperature", "101", "0", "100"),
        ("--top-k", "x", "0", "4294967295"),
        ("--top-p", "1.5", "0", "1"),
        ("--min-p", "nan", "0", "1"),
        ("--repeat-penalty", "0", "0.01", "100"),
    ],
)
def test_a_number_out_of_range_is_the_guests_one_line(
    tiny: Path, option: str, value: str, least: str, most: str
) -> None:
    done = CliRunner().invoke(app, ["chat", str(tiny), "-p", "x", option, value, "--device", "cpu"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"chat: {option} is a number from {least} to {most}, not '{value}'\n"


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
@pytest.mark.parametrize(
    "spec",
    # The other tests here show the command, and tests/models/test_reference.py this model on Vulkan.
    ["cpu", pytest.param("vulkan", marks=[pytest.mark.vulkan, pytest.mark.slow])],
    indirect=True,
)
def test_the_capital_of_france(spec: str, smollm2: Path) -> None:
    arguments = ("--raw", "--greedy", "--max-tokens", 24, "--counters", "-p", "The capital of France is")
    done = wasmetal("chat", smollm2, *arguments, "--device", spec)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(" Paris.")
    assert done.stdout.endswith("bytes copied 0\n")
