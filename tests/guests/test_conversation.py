"""``wasmetal.conversation``: the chat guest, turn by turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.guests.scripted import BEGIN, ScriptedModel
from wasmetal.conversation import Conversation, read_messages
from wasmetal.errors import DeviceLostError, GuestError, ModelError

USER = [{"role": "user", "content": "one"}]


class Talk:
    """A conversation with a scripted model, and what came out of it."""

    def __init__(self, conversation: Conversation, out: list[bytes], errors: list[bytes]) -> None:
        self.conversation = conversation
        self._out, self._errors = out, errors

    def answer(self, text: str) -> str:
        """The whole answer."""
        self._out.clear()
        if self.conversation.ask(text):
            while self.conversation.go_on():
                pass
        return self.out

    @property
    def out(self) -> str:
        return b"".join(self._out).decode()

    @property
    def err(self) -> str:
        return b"".join(self._errors).decode()


@contextmanager
def talk(model: Any, *arguments: str) -> Iterator[Talk]:
    out: list[bytes] = []
    errors: list[bytes] = []
    with Conversation(model, arguments=arguments, stdout=out.append, stderr=errors.append) as conversation:
        assert conversation.open() == 0
        yield Talk(conversation, out, errors)


def test_turns_are_those_of_a_run() -> None:
    model = ScriptedModel(b"first", "grüße\n".encode(), b"")
    with talk(model, "--system", "Be kind.") as it:
        assert [it.answer(text) for text in ("one", "zwei ü\nthree", "")] == ["first\n", "grüße\n", "\n"]
        said = ["Be kind.", "one", "first", "zwei ü\nthree", "grüße\n", "", ""]
        roles = ["system", *["user", "assistant"] * 3]
        assert it.conversation.messages() == [
            {"role": role, "content": content} for role, content in zip(roles, said, strict=True)
        ]
        assert it.err == ""
    assert model.sessions == 1
    assert [BEGIN, *b"s:Be kind.|u:one|a:"] == model.forwards[0]


def test_stats_count_tokens() -> None:
    with talk(ScriptedModel(b"abcd", b"ef", context=100)) as it:
        stats = it.conversation.stats()
        assert (stats.context_tokens, stats.context_length, stats.prefill_tokens, stats.decode_tokens) == (0, 100, 0, 0)
        it.answer("x")
        it.answer("y")
        stats = it.conversation.stats()
        assert stats.prefill_tokens == len("^u:x|a:") + len("|u:y|a:")
        assert stats.decode_tokens == len("abcdef")
        assert stats.context_tokens == len("^u:x|a:abcd|u:y|a:ef")
        assert min(stats.prefill_seconds, stats.decode_seconds) > 0


def test_an_answer_can_be_ended() -> None:
    model = ScriptedModel(b"a" * 100_000, b"ok", context=200_000)
    with talk(model) as it:
        assert it.conversation.ask("one")
        assert it.conversation.go_on()
        it.conversation.end()
        assert not it.conversation.go_on()
        _, cut = it.conversation.messages()
        assert cut["role"] == "assistant"
        assert 0 < len(cut["content"]) < 100_000
        assert set(cut["content"]) == {"a"}
        assert it.out == cut["content"] + "\n"
        it.conversation.end()
        assert it.answer("two") == "ok\n"
        assert len(it.conversation.messages()) == 4


def test_a_question_during_an_answer_ends_it() -> None:
    with talk(ScriptedModel(b"a" * 100_000, b"ok", context=200_000)) as it:
        assert it.conversation.ask("one")
        assert it.conversation.go_on()
        assert it.answer("two") == "\nok\n"
        assert [each["role"] for each in it.conversation.messages()] == ["user", "assistant"] * 2


def test_reset_keeps_the_system_message() -> None:
    model = ScriptedModel(b"first", b"second")
    with talk(model, "--system", "s") as it:
        it.answer("one")
        it.conversation.reset()
        assert it.conversation.messages() == [{"role": "system", "content": "s"}]
        assert it.conversation.stats().context_tokens == 0
        it.answer("two")
    assert model.forwards[-7] == [BEGIN, *b"s:s|u:two|a:"]  # all of it, as nothing was left


def test_the_system_message_is_set_replaced_and_dropped() -> None:
    with talk(ScriptedModel(b"first")) as it:
        it.answer("one")
        rest = it.conversation.messages()
        for text in ("Be kind.", "Be brief, ü."):
            assert it.conversation.set_system(text)
            assert it.conversation.messages() == [{"role": "system", "content": text}, *rest]
        assert it.conversation.set_system("")
        assert it.conversation.messages() == rest


def test_saved_messages_can_be_loaded_under_another_model() -> None:
    with talk(ScriptedModel('say "ü"\\ \x07 🚀'.encode()), "--system", "s") as it:
        it.answer("<|im_end|>")
        messages = it.conversation.messages()
    model = ScriptedModel(b"next", context=500)
    with talk(model, "--system", "another") as it:
        assert it.conversation.load(messages)
        assert it.conversation.messages() == messages
        assert it.answer("on") == "next\n"
    prompt = b"".join(f"{each['role'][0]}:{each['content']}|".encode() for each in messages) + b"u:on|a:"
    assert model.forwards[0] == [BEGIN, *prompt]


def test_what_the_template_refuses_leaves_the_conversation_as_it_was() -> None:
    class Picky(ScriptedModel):
        def render(self, messages: Any, add_generation_prompt: bool) -> str:
            if any(each["role"] == "system" for each in messages):
                raise ModelError("no system messages here")
            return super().render(messages, add_generation_prompt)

    with talk(Picky(b"first", b"second")) as it:
        it.answer("one")
        before = it.conversation.messages()
        it.conversation.set_system("s")
        assert not it.conversation.ask("two")
        assert it.err.startswith("chat: the model's chat template refuses the conversation")
        it.conversation.set_system("")
        assert it.conversation.messages() == before
        assert it.answer("two") == "second\n"


def test_a_message_longer_than_the_context_is_refused() -> None:
    with talk(ScriptedModel(b"first", b"second", context=40)) as it:
        it.answer("one")
        assert not it.conversation.ask("x" * 50)
        assert "the model's context is 40" in it.err
        assert it.answer("two") == "second\n"


def test_raw_text_has_no_messages() -> None:
    model = ScriptedModel(b" Paris", template=False)
    with talk(model, "--raw", "--system", "unused") as it:
        assert it.answer("The capital") == " Paris\n"
        assert not it.conversation.set_system("s")
        assert not it.conversation.load(USER)
        assert it.err == "chat: --raw has no messages\n" * 2
        assert it.conversation.messages() == []


def test_a_lost_device_ends_the_guest() -> None:
    class Lost(ScriptedModel):
        def session(self, holder: None) -> Any:
            session = super().session(holder)
            session.steps = lambda *_: (_ for _ in ()).throw(DeviceLostError("gone"))  # type: ignore[method-assign]
            return session

    with talk(Lost()) as it:
        with pytest.raises(GuestError, match="the guest ended with exit code 1; its standard error may say why"):
            it.answer("one")
        assert it.err == "chat: session_forward_top: No such device\n"


@pytest.mark.parametrize(
    ("model", "arguments", "code", "message"),
    [
        (ScriptedModel(template=False), [], 1, b"chat: the model has no chat template; use --raw\n"),
        (ScriptedModel(), ["--model", "other"], 1, b"chat: no model named 'other' was granted\n"),
        (ScriptedModel(), ["--top-p", "2"], 2, b"chat: --top-p is a number from 0 to 1, not '2'\n"),
    ],
)
def test_opening_gives_an_exit_code(model: Any, arguments: list[str], code: int, message: bytes) -> None:
    errors: list[bytes] = []
    with Conversation(model, arguments=arguments, stderr=errors.append) as conversation:
        assert conversation.open() == code
    assert b"".join(errors) == message


def test_a_role_that_is_none() -> None:
    with talk(ScriptedModel()) as it:
        assert it.conversation.guest.call("chat_add", 3, 0) == 0
        assert it.conversation.guest.call("chat_add", -1, 0) == 0
        assert it.conversation.messages() == []


def test_messages_are_read_from_json() -> None:
    assert read_messages('[{"role": "user", "content": "one"}]') == USER
    assert read_messages("[]") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "{}",
        "[1]",
        "[" * 100_000,
        '[{"role": "user"}]',
        '[{"role": "tool", "content": "x"}]',
        '[{"role": [], "content": "x"}]',
        '[{"role": "user", "content": 1}]',
        '[{"role": "user", "content": "x", "name": "y"}]',
    ],
)
def test_what_is_no_conversation(text: str) -> None:
    with pytest.raises(GuestError, match="not a conversation"):
        read_messages(text)
