from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.guests.scripted import BEGIN, ScriptedModel, stats
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, Limits, load_model
from wasmetal.device import Device
from wasmetal.models.lm.multi_step import MOST_STEPS
from wasmetal.models.lm.pacing import Pacing

CHAT = Path(__file__).parents[2] / "guests" / "chat.wasm"


class Ran:
    """A finished run of the guest."""

    def __init__(
        self, model: Any, *args: str, stdin: bytes = b"", limits: Limits | None = None, draft: Any = None
    ) -> None:
        out: list[bytes] = []
        errors: list[bytes] = []
        if isinstance(draft, ScriptedModel):
            draft.device = model.device
        with Guest(
            CHAT,
            models={"default": model} | ({"draft": draft} if draft else {}),
            args=args,
            stdin=stdin,
            limits=limits,
            stdout=out.append,
            stderr=errors.append,
        ) as guest:
            self.code = guest.run()
            self.counters = guest.counters
        self.writes = out
        self.out, self.err = b"".join(out), b"".join(errors)


# ---- Against a model that says what it is told to


def test_a_prompt_gives_the_reply_alone() -> None:
    ran = Ran(ScriptedModel(b"Good day."), "-p", "Hello")
    assert (ran.code, ran.out, ran.err) == (0, b"Good day.\n", b"")


@pytest.mark.parametrize(
    ("reply", "out"),
    [
        (b"", b"\n"),
        (b"\n\n", b"\n"),
        (b"one\n", b"one\n"),
        (b"one\n\n\ntwo\n\n", b"one\n\n\ntwo\n"),
        (b" leading", b" leading\n"),
        ("grüße 🚀".encode(), "grüße 🚀\n".encode()),
    ],
)
def test_output_ends_with_one_newline(reply: bytes, out: bytes) -> None:
    assert Ran(ScriptedModel(reply), "-p", "x").out == out


def test_the_first_token_is_written_before_more_are_chosen() -> None:
    writes = Ran(ScriptedModel(b"abc"), "-p", "x").writes
    assert (writes[0], b"".join(writes)) == (b"a", b"abc\n")


def test_drafts_are_written_pass_by_pass() -> None:
    assert Ran(ScriptedModel(b"abc"), "-p", "x", "--draft-tokens", "1").writes == [b"a", b"b", b"c", b"\n"]


def test_the_stream_holds_split_characters_together() -> None:
    with Guest(CHAT, models={"default": ScriptedModel("a€b".encode())}, args=["-p", "x"]) as guest:
        pieces = list(guest.stream())
        assert "".join(pieces) == "a€b\n"
        assert [piece for piece in pieces if "€" in piece]  # whole, though its bytes are three tokens


def test_max_tokens() -> None:
    model = ScriptedModel(b"abcdef")
    assert Ran(model, "-p", "x", "--max-tokens", "3").out == b"abc\n"
    assert len(model.forwards) == 3  # the third token is not run


def test_the_template_gets_the_messages() -> None:
    model = ScriptedModel(b"yes")
    text = 'quote " backslash \\ tab \t bell \x07 ünïcode 🚀'
    Ran(model, "-p", text, "--system", "Be kind.")
    assert model.conversations == [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]]
    assert model.forwards[0] == [BEGIN, *f"s:Be kind.|u:{text}|a:".encode()]


def test_control_tokens_spelled_out_in_a_message_stay_text() -> None:
    model = ScriptedModel(b"I say ^ too", b"yes")
    Ran(model, "--system", "^s", stdin=b"one\nend it<|im_end|>^ now\n")
    first, *others = (token for tokens in model.forwards[: -len(b"yes")] for token in tokens)
    assert first == BEGIN
    assert bytes(others) == b"s:^s|u:one|a:I say ^ too|u:end it<|im_end|>^ now|a:"


def test_a_conversation() -> None:
    model = ScriptedModel(b"first", b"second")
    ran = Ran(model, stdin=b"one\n\r\n\ntwo\r\n")
    assert (ran.code, ran.out) == (0, b"first\nsecond\n")
    assert ran.err == b""  # no prompts, as standard input is no terminal
    assert [message["content"] for message in model.conversations[1]] == ["one", "first", "two"]
    assert [message["role"] for message in model.conversations[1]] == ["user", "assistant", "user"]


def test_a_session_keeps_what_the_turns_have_in_common() -> None:
    model = ScriptedModel(b"first", b"second")
    Ran(model, stdin=b"one\ntwo\n")
    assert model.sessions == 1
    before, _, after = model.forwards[0], model.forwards[1:6], model.forwards[6]
    assert before == [BEGIN, *b"u:one|a:"]
    assert after == list(b"|u:two|a:")


def test_bytes_that_are_no_text_do_not_end_the_conversation() -> None:
    model = ScriptedModel(b"cut \xe2\x82", b"ok")
    ran = Ran(model, stdin=b"\xff one\ntwo\n")
    assert (ran.code, ran.out) == (0, b"cut \xe2\x82\nok\n")
    assert [m["content"] for m in model.conversations[1]] == ["\ufffd one", "cut \ufffd\ufffd", "two"]


def test_a_long_conversation_forgets_its_beginning() -> None:
    model = ScriptedModel(*[b"reply"] * 6, context=60)
    ran = Ran(model, "--system", "sys", stdin=b"".join(b"question %d\n" % i for i in range(6)))
    assert (ran.code, ran.out) == (0, b"reply\n" * 6)
    last = [message["content"] for message in model.conversations[-1]]
    assert last[0] == "sys"
    assert last[-1] == "question 5"
    assert "question 0" not in last


def test_a_full_context_ends_the_reply() -> None:
    model = ScriptedModel(b"a" * 100, context=20)
    ran = Ran(model, "--raw", "-p", "0123456789")
    assert (ran.code, ran.out) == (0, b"a" * 11 + b"\n")  # ten were run, and one more was drawn


def test_a_prompt_longer_than_the_context() -> None:
    ran = Ran(ScriptedModel(b"a", context=20), "-p", "x" * 30)
    assert (ran.code, ran.out) == (1, b"")
    assert b"the model's context is 20" in ran.err


def test_raw_text_goes_without_a_template() -> None:
    model = ScriptedModel(b" Paris", template=False)
    assert Ran(model, "--raw", "-p", "The capital <|is|>").out == b" Paris\n"
    assert model.conversations == []
    assert bytes(model.forwards[0]) == b"The capital <|is|>"


def test_stats() -> None:
    numbers = stats(Ran(ScriptedModel(b"abcd"), "-p", "x", "--stats").err)
    assert (numbers["prefill_tokens"], numbers["decode_tokens"]) == (len("^u:x|a:"), 4)
    assert numbers["prefill_seconds"] > 0
    assert numbers["decode_seconds"] > 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--what"], 2, b"usage: chat"),
        (["-p"], 2, b"usage: chat"),
        (["-p", "x", "--top-p", "2"], 2, b"chat: --top-p is a number from 0 to 1, not '2'\n"),
        (["-p", "x", "--top-k", "many"], 2, b"chat: --top-k is a number from 0 to 4294967295, not 'many'\n"),
        (["-p", "x", "--max-tokens", "0"], 2, b"chat: --max-tokens is a number from 1 to 4294967295, not '0'\n"),
        (["-p", "x", "--seed", "nan"], 2, b"chat: --seed is a number from 0 to 9007199254740992, not 'nan'\n"),
        (["-p", "x", "--model", "other"], 1, b"no model named 'other' was granted"),
        (["-p", ""], 0, b""),
        (["--raw", "-p", ""], 1, b"the prompt is empty"),
    ],
)
def test_wrong_arguments(args: list[str], code: int, message: bytes) -> None:
    ran = Ran(ScriptedModel(b"a"), *args)
    assert ran.code == code
    assert message in ran.err


def test_a_model_without_a_template() -> None:
    ran = Ran(ScriptedModel(b"a", template=False), "-p", "x")
    assert (ran.code, ran.err) == (1, b"chat: the model has no chat template; use --raw\n")


# ---- Against a real engine


@pytest.fixture(scope="module")
def tiny(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with load_model(write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"), device) as model:
        yield model


def greedy(model: Any, text: str, count: int) -> bytes:
    """The same, in plain Python on the same engine."""
    logits = model.logits()
    view = logits.buffer.view().view(np.float32)[: model.vocab_size]
    pieces, said = model.tokenizer.pieces(), b""
    with model.session() as session:
        session.forward(model.tokenizer.encode(text, parse_special=False), logits)
        for _ in range(count):
            token = int(view.argmax())
            if token in model.tokenizer.end_of_generation:
                break
            said += pieces[token]
            session.forward([token], logits)
    return said


def test_greedy_text_is_that_of_plain_python(tiny: Any) -> None:
    ran = Ran(tiny, "--raw", "--greedy", "--max-tokens", "24", "-p", "hello world")
    assert ran.out == greedy(tiny, "hello world", 24).rstrip(b"\n") + b"\n"
    assert ran.counters.bytes_copied == 0


def test_a_token_costs_one_host_call_at_most(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pacing, "steps", lambda _: MOST_STEPS)
    few, many = (Ran(tiny, "--raw", "--greedy", "--max-tokens", str(n), "-p", "hello") for n in (5, 25))
    tokens = 20
    assert len(greedy(tiny, "hello", 25)) >= 25  # it does not end earlier
    assert many.counters.host_calls - few.counters.host_calls <= tokens  # on a fast machine, one for 32
    assert len(many.writes) - len(few.writes) <= tokens
    assert many.counters.bytes_shared == few.counters.bytes_shared


def test_a_token_costs_two_host_calls_if_the_guest_needs_all_logits(tiny: Any) -> None:
    few, many = (Ran(tiny, "--raw", "--top-k", "0", "--seed", "2", "--max-tokens", str(n), "-p", "hi") for n in (5, 25))
    tokens = 20
    assert many.counters.host_calls - few.counters.host_calls == tokens  # forward,
    assert len(many.writes) - len(few.writes) <= tokens  # and the write of its text
    assert many.counters.bytes_shared == few.counters.bytes_shared


def test_the_seed_decides(tiny: Any) -> None:
    def said(seed: str) -> bytes:
        return Ran(tiny, "-p", "hello", "--seed", seed, "--max-tokens", "20", "--temperature", "2").out

    assert said("1") == said("1") != said("2")


@pytest.mark.slow  # the command asks the same, through the same guest, on Vulkan too: tests/cli/test_cli_chat.py
@pytest.mark.model
def test_the_capital_of_france(cpu: Device, smollm2: Path) -> None:
    with load_model(smollm2, cpu) as model:
        ran = Ran(model, "--raw", "--greedy", "--max-tokens", "24", "-p", "The capital of France is", "--stats")
    assert ran.out.startswith(b" Paris.")
    assert stats(ran.err)["prefill_tokens"] == 5
    assert ran.counters.bytes_copied == 0


@pytest.mark.model
def test_it_stops_at_the_end_of_its_turn(cpu: Device, smollm2: Path) -> None:
    with load_model(smollm2, cpu) as model:
        ran = Ran(model, "--greedy", "--max-tokens", "200", "--stats", "-p", "What is the capital of France? Be brief.")
    assert b"Paris" in ran.out
    assert stats(ran.err)["decode_tokens"] < 199
    assert b"<|" not in ran.out
