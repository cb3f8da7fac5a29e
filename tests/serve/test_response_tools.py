"""Tools in the Responses API, with the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.serve.serving import Serving
from tests.serve.test_conversations import keeping
from tests.serve.test_tools import PLACE
from wasmetal.models import Model

pytest.importorskip("llguidance")
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": PLACE, "strict": True}
TIME: Any = {"type": "function", "name": "get_time", "parameters": None, "strict": None}
BOTH: list[Any] = [WEATHER, TIME]
CALL: Any = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
GIVEN: Any = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
ASK: dict[str, Any] = {"model": "tiny", "input": "hello", "max_output_tokens": 900, "temperature": 0}
ASKED: Any = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def server(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with keeping(tiny, tmp_path_factory.mktemp("tools")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return server.client()


def respond(client: openai.OpenAI, said: Any = "hello", **options: Any) -> Any:
    return client.responses.create(**(ASK | {"input": said} | options))


def check(calls: list[Any]) -> None:
    """That each is one of a tool."""
    assert calls
    for call in calls:
        assert (call.type, call.status, call.id[:3], call.call_id[:5]) == ("function_call", "completed", "fc_", "call_")
        jsonschema.validate(
            json.loads(call.arguments), {"get_weather": PLACE, "get_time": {"maxProperties": 0}}[call.name]
        )


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "name": "get_time"}, {"type": "function", "name": "get_weather"}]
)
def test_calls_that_are_required(client: openai.OpenAI, choice: Any) -> None:
    answer = respond(client, tools=BOTH, tool_choice=choice, parallel_tool_calls=False)
    check(answer.output)
    assert len(answer.output) == 1
    assert choice in ("required", {"type": "function", "name": answer.output[0].name})
    assert (answer.status, answer.store, answer.parallel_tool_calls) == ("completed", False, False)
    assert [tool.name for tool in answer.tools] == ["get_weather", "get_time"]
    assert answer.output_text == ""


@pytest.mark.parametrize("parallel", [False, True])
def test_streamed_calls_are_the_whole_ones_in_pieces(client: openai.OpenAI, parallel: bool) -> None:
    options: dict[str, Any] = {"tools": BOTH, "tool_choice": "required", "parallel_tool_calls": parallel}
    whole = respond(client, **options)
    events = list(respond(client, **options, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert events[-1].type == f"response.{whole.status}"
    assert [(each.name, each.arguments) for each in last.output] == [
        (each.name, each.arguments) for each in whole.output
    ]
    check(last.output[: None if last.status == "completed" else -1])
    assert last.usage == whole.usage
    for index, item in enumerate(last.output):
        mine = [event for event in events if getattr(event, "output_index", None) == index]
        assert [*dict.fromkeys(event.type for event in mine)] == [
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
        ]
        assert (mine[0].item.arguments, mine[0].item.call_id) == ("", item.call_id)
        assert "".join(event.delta for event in mine[1:-2]) == mine[-2].arguments == item.arguments
        assert {event.item_id for event in mine[1:-1]} == {item.id}
        assert mine[-1].item == item
    if last.status == "completed":
        with client.responses.stream(**ASK | options) as stream:
            said = stream.get_final_response()
        assert [each.arguments for each in said.output] == [each.arguments for each in whole.output]  # type: ignore[union-attr]


def test_text_where_nothing_must_be_called(client: openai.OpenAI) -> None:
    """A random model seldom writes what begins a call."""
    chat: Any = [
        {"type": "function", "function": {"name": each["name"], "parameters": each["parameters"]}} for each in BOTH
    ]
    options: dict[str, Any] = {"temperature": 0, "model": "tiny"}
    expected = (
        client.chat.completions.create(messages=[ASKED], tools=chat, max_completion_tokens=12, **options)
        .choices[0]
        .message
    )
    answer = respond(client, tools=BOTH, max_output_tokens=12)
    assert (answer.output_text, answer.status) == (expected.content, "incomplete")
    events = list(respond(client, tools=BOTH, max_output_tokens=12, stream=True))
    assert [event.type for event in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert events[-1].response.output_text == answer.output_text
    untold, without = (
        respond(client, tools=BOTH, tool_choice="none", max_output_tokens=2),
        respond(client, max_output_tokens=2),
    )
    assert untold.usage.input_tokens == without.usage.input_tokens


def test_what_calls_gave_goes_on_as_in_a_chat(client: openai.OpenAI) -> None:
    function = {"name": "get_weather", "arguments": CALL["arguments"]}
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        ASKED,
        {"role": "assistant", "content": "I ask", "tool_calls": [
            {"id": name, "type": "function", "function": function} for name in ("call_1", "call_2")
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "call_2", "content": "a\nb"},
    ]  # fmt: skip
    expected = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    items = [
        ASKED, {"role": "assistant", "content": "I ask"}, CALL, CALL | {"call_id": "call_2"}, GIVEN,
        GIVEN | {"call_id": "call_2", "output": parts},
    ]  # fmt: skip
    answer = respond(client, items, instructions="be brief", max_output_tokens=8)
    assert expected.usage
    assert (answer.output_text, answer.usage.input_tokens) == (
        expected.choices[0].message.content,
        expected.usage.prompt_tokens,
    )


def test_what_was_answered_is_taken_as_it_was(client: openai.OpenAI) -> None:
    first = respond(client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    (call,) = first.output
    given = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = respond(client, [ASKED, call, given], tools=[WEATHER], max_output_tokens=4)
    assert second.usage.input_tokens > first.usage.input_tokens
    stored = respond(client, max_output_tokens=4)
    for options in ({"store": True}, {"previous_response_id": stored.id}, {"model": "voting"}):
        for more in ({"tools": BOTH}, {"input": [ASKED, CALL, GIVEN]}):
            with pytest.raises(openai.BadRequestError, match="are not supported") as raised:
                respond(client, **options | more)
            assert raised.value.param == next(iter(more))
