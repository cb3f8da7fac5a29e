"""The Responses API, with the official client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.serve.serving import Serving, serving, wait_for
from tests.serve.test_conversations import GUESTS, begin, keeping
from tests.serve.test_going_away import close
from tests.serve.test_hostile_clients import values, well_formed
from wasmetal import ActorProgram
from wasmetal.errors import WasmetalError
from wasmetal.models import Model
from wasmetal.serve.documents import Documents
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.keys import new_key, read_keys
from wasmetal.serve.limits import ServerLimits

EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@pytest.fixture
def server(tiny: Model, tmp_path: Path) -> Iterator[Serving]:
    with keeping(tiny, tmp_path / "actors") as server:
        yield server


@pytest.fixture
def client(server: Serving) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def forgetful(tiny: Model) -> Iterator[Serving]:
    """A server that keeps nothing."""
    guests = [GuestModel("plain", ActorProgram(GUESTS / "converse.wasm"), {"default": tiny})]
    with serving(Engine([tiny], ServerLimits(running=2), guests=guests)) as server:
        yield server


def respond(client: openai.OpenAI, said: Any = "hello", **options: Any) -> Any:
    return client.responses.create(
        **({"model": "tiny", "input": said, "max_output_tokens": 8, "temperature": 0} | options)
    )


def cached(response: Any) -> int:
    return int(response.usage.input_tokens_details.cached_tokens)


@pytest.mark.parametrize("model", ["tiny", "plain"])
def test_a_response_says_what_a_chat_says(forgetful: Serving, model: str) -> None:
    client = forgetful.client()
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "world"},
        {"role": "user", "content": "and\nagain"},
    ]
    chat = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "world", "annotations": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "and"}, {"type": "input_text", "text": "again"}]},
    ]
    answer = respond(client, items, model=model, instructions="be brief")
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, 8)  # type: ignore[union-attr]
    assert (answer.store, answer.instructions, answer.model) == (False, "be brief", model)
    assert abs(answer.created_at - time.time()) < 60
    found = forgetful.ask(f"/v1/responses/{answer.id}")
    assert (found[0], "--actors" in found[1]["error"]["message"]) == (400, True)


@pytest.mark.parametrize("model", ["tiny", "plain"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_streamed_response_is_the_whole_one_in_pieces(
    forgetful: Serving, server: Serving, model: str, stored: bool
) -> None:
    client = (server if stored else forgetful).client()
    model = model.replace("plain", "voting") if stored else model
    whole = respond(client, model=model, temperature=1e-9)
    events = list(respond(client, model=model, temperature=1e-9, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == EVENTS[:4]
    assert [*dict.fromkeys(kinds)] == [*EVENTS, "response.incomplete"]
    assert len({event.item_id for event in events if hasattr(event, "item_id")}) == 1
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1].response
    assert "".join(deltas) == last.output_text == whole.output_text
    assert (last.usage, last.output[0].status) == (whole.usage, "incomplete")
    if stored:
        assert client.responses.retrieve(last.id) == last
    with client.responses.stream(model=model, input="hello", max_output_tokens=8, temperature=0) as stream:
        *_, said = (event.snapshot for event in stream if event.type == "response.output_text.delta")
        assert said == "".join(deltas)


def test_a_stored_response_is_there_until_it_is_deleted(client: openai.OpenAI) -> None:
    answer = respond(client, metadata={"a": "b"})
    assert answer.store is True
    assert client.responses.retrieve(answer.id) == answer
    client.responses.delete(answer.id)
    for use in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            use(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(respond(client, store=False).id)


def test_a_response_goes_on_after_another_in_several_ways(server: Serving, client: openai.OpenAI) -> None:
    first = respond(client, instructions="be brief")
    again, other = (
        respond(client, text, previous_response_id=first.id, instructions="be brief") for text in ("and", "other")
    )
    assert again.previous_response_id == first.id
    assert cached(again) >= first.usage.input_tokens
    assert cached(other) >= first.usage.input_tokens
    items: list[Any] = [
        {"role": "user", "content": "hello"},
        *[each.model_dump(exclude_none=True) for each in first.output],
        {"role": "user", "content": "and"},
    ]
    whole = respond(client, items, instructions="be brief", store=False)
    assert (whole.output_text, whole.usage.input_tokens) == (again.output_text, again.usage.input_tokens)
    # Instructions hold for one response.
    assert respond(client, "and", previous_response_id=first.id).usage.input_tokens < again.usage.input_tokens
    # What is not stored leaves nothing behind.
    assert server.engine.conversations
    actors = server.engine.conversations.host.actors()
    respond(client, "and", previous_response_id=again.id, store=False)
    with pytest.raises(openai.BadRequestError):
        respond(client, "hello " * 5000, previous_response_id=again.id)
    assert server.engine.conversations.host.actors() == actors


def test_conversations(server: Serving, client: openai.OpenAI) -> None:
    conversation = client.conversations.create(metadata={"topic": "x"})
    assert client.conversations.retrieve(conversation.id) == conversation
    first = respond(client, conversation=conversation.id)
    second = respond(client, "and", conversation={"id": conversation.id})
    assert second.conversation.id == conversation.id
    assert cached(second) >= first.usage.input_tokens
    expected = respond(client, "and", previous_response_id=respond(client).id)
    assert (second.output_text, second.usage.input_tokens) == (expected.output_text, expected.usage.input_tokens)
    with pytest.raises(openai.BadRequestError, match="belongs to a conversation"):
        respond(client, previous_response_id=first.id)
    client.conversations.delete(conversation.id)
    with pytest.raises(openai.NotFoundError) as raised:
        respond(client, conversation=conversation.id)
    assert (raised.value.param, raised.value.code) == ("conversation", "conversation_not_found")


def test_a_conversation_by_name_has_chats_and_responses(client: openai.OpenAI) -> None:
    bob = client.with_options(default_headers={"X-Wasmetal-Actor": "bob"})
    first = respond(bob)
    assert first.conversation.id == "bob"
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    chat = bob.chat.completions.create(messages=[{"role": "user", "content": "and"}], **options)
    assert chat.usage
    assert chat.usage.prompt_tokens_details
    assert (chat.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="one conversation"):
        respond(bob, conversation="conv_x")


KEYS = st.sampled_from(
    ["input", "instructions", "conversation", "previous_response_id", "store", "stream", "metadata", "tools", "text",
     "max_output_tokens", "temperature", "top_p", "truncation", "include", "id", "role", "content", "items", "model"]
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with keeping(tiny, tmp_path_factory.mktemp("kept"), limits={"stored": 5}) as server:
        yield server


@given(
    path=st.sampled_from(["/v1/responses", "/v1/responses", "/v1/conversations"]),
    base=st.sampled_from([{}, {"model": "tiny", "max_output_tokens": 2}, {"model": "tiny", "max_output_tokens": 2}]),
    said=st.text(max_size=9)
    | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": values}), max_size=2),
    more=st.dictionaries(KEYS, values, max_size=2),
)
@example("/v1/responses", {"model": "tiny", "max_output_tokens": 1}, "\ud800\0", {"instructions": "\udfff"})
@example("/v1/responses", {"model": "tiny", "max_output_tokens": 1}, "x", {"conversation": {"id": "conv_\0/.."}})
@settings(max_examples=60, deadline=None)
def test_no_body_is_the_servers_fault(kept: Serving, path: str, base: Any, said: Any, more: Any) -> None:
    status, answer, _ = kept.ask(path, base | ({"input": said} if path.endswith("responses") else {}) | more)
    assert well_formed(status, answer), (status, answer)


def test_all_that_is_kept_survives_a_restart(tiny: Model, tmp_path: Path) -> None:
    with keeping(tiny, tmp_path / "actors") as server:
        client = server.client()
        conversation, first = client.conversations.create(), respond(client)
        respond(client, conversation=conversation.id)
    with keeping(tiny, tmp_path / "actors") as server:
        client = server.client()
        assert client.responses.retrieve(first.id) == first
        for options in ({"previous_response_id": first.id}, {"conversation": conversation.id}):
            assert cached(respond(client, "and", **options)) >= first.usage.input_tokens


def test_nothing_of_one_key_is_visible_to_another(tiny: Model, tmp_path: Path) -> None:
    keys = [new_key("ann"), new_key("bob")]
    (tmp_path / "keys").write_text("\n".join(line for _, line in keys))
    with keeping(tiny, tmp_path / "actors", keys=read_keys(None, tmp_path / "keys")) as server:
        ann, bob = (server.client(key) for key, _ in keys)
        response, conversation = respond(ann), ann.conversations.create()
        for use in (
            lambda: bob.responses.retrieve(response.id),
            lambda: bob.responses.delete(response.id),
            lambda: respond(bob, previous_response_id=response.id),
            lambda: respond(bob, conversation=conversation.id),
            lambda: bob.conversations.retrieve(conversation.id),
            lambda: bob.conversations.delete(conversation.id),
        ):
            with pytest.raises(openai.NotFoundError):
                use()
        assert ann.responses.retrieve(response.id) == response
        assert ann.conversations.retrieve(conversation.id) == conversation


def test_a_response_whose_client_goes_away_never_was(server: Serving, client: openai.OpenAI) -> None:
    first = respond(client, model="once")
    assert server.engine.conversations
    host = server.engine.conversations.host
    actors = host.actors()
    body = {"model": "once", "input": "and", "stream": True, "previous_response_id": first.id}
    close(*begin(server, {}, "/v1/responses", body))
    wait_for(lambda: not server.engine.tasks)
    assert host.actors() == actors


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"model": "gpt-5"}, "model", "model_not_found"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0.type", "invalid_value"),
        ({"input": [{"type": "function_call_output", "output": "y"}]}, "input.0.call_id", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, None, "invalid_value"),
        ({"input": "hello " * 5000}, "input", None),
        ({"tools": [{"type": "web_search"}]}, "tools.0.name", "missing_required_parameter"),
        ({"tool_choice": "required", "store": False}, "tool_choice", None),
        ({"text": {"format": {"type": "json_object"}}}, "text.format.type", "invalid_value"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unknown_parameter"),
        ({"background": True}, "background", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"extra_body": {"stop": "x"}}, "stop", "unknown_parameter"),
        ({"previous_response_id": "resp_none"}, "previous_response_id", "response_not_found"),
        ({"previous_response_id": "../x"}, "previous_response_id", "response_not_found"),
        ({"conversation": "conv_none"}, "conversation", "conversation_not_found"),
        ({"conversation": "x", "previous_response_id": "y"}, "previous_response_id", None),
        ({"truncation": "disabled"}, "truncation", None),
        ({"truncation": "auto", "store": False}, "truncation", None),
    ],
)
def test_errors(client: openai.OpenAI, options: dict[str, Any], param: str | None, code: str | None) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as raised:
        respond(client, **options)
    assert param in (None, raised.value.param)
    assert code in (None, raised.value.code)
    assert raised.value.type == "invalid_request_error"


def test_a_server_that_keeps_nothing_says_so(forgetful: Serving) -> None:
    client = forgetful.client()
    for options in ({"store": True}, {"previous_response_id": "resp_x"}, {"conversation": "conv_x"}):
        with pytest.raises(openai.BadRequestError, match="--actors"):
            respond(client, **options)
    with pytest.raises(openai.BadRequestError, match="--actors"):
        client.conversations.create()


def test_a_guest_that_fails_after_some_text(tiny: Model) -> None:
    program = ActorProgram(
        b"""(module (import "wasmetal_actor" "reply_write" (func $reply (param i32 i32) (result i32)))
        (memory (export "memory") 1) (data (i32.const 0) "hello")
        (func (export "wm_actor_message") (drop (call $reply (i32.const 0) (i32.const 5))) unreachable))"""
    )
    with serving(Engine([tiny], ServerLimits(running=1), guests=[GuestModel("traps", program)])) as server:
        *_, delta, last = list(respond(server.client(), model="traps", stream=True))
        assert (delta.delta, last.type, last.response.status) == ("hello", "response.failed", "failed")
        assert "unreachable" in last.response.error.message
        with pytest.raises(openai.InternalServerError):
            respond(server.client(), model="traps")


def test_the_oldest_responses_go(tiny: Model, tmp_path: Path) -> None:
    with keeping(tiny, tmp_path / "actors", limits={"stored": 2}) as server:
        client = server.client()
        first, second = respond(client), respond(client)
        client.responses.retrieve(first.id)  # it was used last
        third = respond(client)
        assert {client.responses.retrieve(each.id).id for each in (first, third)} == {first.id, third.id}
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(second.id)
        assert server.engine.conversations
        assert len(server.engine.conversations.host.actors()) == 2


def test_documents(tmp_path: Path) -> None:
    documents = Documents(tmp_path / "documents", 2)
    assert [documents.save(key, {"it": key}) for key in "abb"] == [[], [], []]
    assert documents.load("a") == {"it": "a"}
    documents.touch("a")
    assert documents.save("c", {}) == ["b"]
    again = Documents(tmp_path / "documents", 2)
    assert [again.load(key) for key in "abc"] == [{"it": "a"}, None, {}]
    (tmp_path / "documents" / "a.json").write_text("{")
    with pytest.raises(WasmetalError, match="cannot be read"):
        again.load("a")
    assert json.loads((tmp_path / "documents" / "c.json").read_text()) == {}
