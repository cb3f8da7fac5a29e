"""Answers that obey a schema or a grammar, whatever the model would say: the tiny one says noise."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.models.random_schema import schema
from tests.serve.serving import Serving, serving
from tests.serve.test_going_away import WRITES
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.models import Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.limits import ServerLimits

pytest.importorskip("llguidance")
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 900}


@pytest.fixture(scope="module")
def client(served: Serving) -> openai.OpenAI:
    return served.client()


def wanted(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema} | fields}


def obey(client: openai.OpenAI, count: int, seed: int) -> None:
    r = random.Random(seed)
    for number in range(count):
        expected = schema(r)
        answer = client.chat.completions.create(
            **CHAT, seed=number, n=1 + number % 2, response_format=wanted(expected, strict=bool(number % 3))
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content or ""), expected)


def test_random_schemas(client: openai.OpenAI) -> None:
    obey(client, 40, seed=1)


@pytest.mark.slow
def test_five_hundred_random_schemas(client: openai.OpenAI) -> None:
    obey(client, 500, seed=2)


def test_streamed_greedy_and_with_penalties(client: openai.OpenAI) -> None:
    expected = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}}, "required": ["a"]}
    expected |= {"additionalProperties": False}
    options: dict[str, Any] = {"response_format": wanted(expected)}
    for sampling in ({"temperature": 0}, {"frequency_penalty": 2, "seed": 1}, {"top_k": 3, "min_p": 0.2}):
        extra = {"extra_body": sampling}
        chunks = list(client.chat.completions.create(**CHAT, **options, **extra, stream=True))
        jsonschema.validate(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks)), expected)
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_model(client: openai.OpenAI) -> None:
    # What the mask left was unlikely: the likeliest tokens are told all the same.
    answer = client.chat.completions.create(
        **CHAT, seed=1, response_format=wanted({"const": "abc"}), logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].logprobs
    content = answer.choices[0].logprobs.content or []
    assert "".join(each.token for each in content) == '"abc"'
    assert any(each.logprob < each.top_logprobs[0].logprob for each in content)


def test_any_json_object(client: openai.OpenAI) -> None:
    for seed in range(5):
        choice = client.chat.completions.create(**CHAT, seed=seed, response_format={"type": "json_object"}).choices[0]
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content or ""), dict)
        else:
            assert (choice.message.content or "").startswith("{")


def test_what_is_too_long_says_so(client: openai.OpenAI) -> None:
    format = wanted({"type": "string", "minLength": 50})
    choice = client.chat.completions.create(**CHAT | {"max_tokens": 5}, response_format=format).choices[0]
    assert choice.finish_reason == "length"


def test_the_clients_own_classes(client: openai.OpenAI) -> None:
    class Answer(BaseModel):
        word: bool
        number: int | None

    options = {"model": "tiny", "messages": CHAT["messages"], "max_tokens": 900, "seed": 3}
    parsed = client.chat.completions.parse(**options, response_format=Answer).choices[0].message.parsed
    assert isinstance(parsed, Answer)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= "yes" | "no"', "yes|no"),
        ('root ::= item item? "."\nitem ::= [a-c] [0-9]', r"([a-c][0-9]){1,2}\."),
        ("start: /[xy]{3}/", "[xy]{3}"),  # Lark
    ],
)
def test_grammars(client: openai.OpenAI, grammar: str, pattern: str) -> None:
    extra = {"grammar": grammar}
    for seed in range(3):
        answer = client.chat.completions.create(**CHAT, seed=seed, extra_body=extra)
        assert re.fullmatch(pattern, answer.choices[0].message.content or "")
        text = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=50, seed=seed, extra_body=extra)
        assert all(re.fullmatch(pattern, choice.text) for choice in text.choices)


def test_stop_strings_cut_what_a_grammar_gives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT, stop=["cd", "d"], extra_body={"grammar": 'root ::= "abcdef"'})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("ab", "stop")


OBJECT = {"type": "json_object"}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": wanted({"type": "nonsense"})}, "response_format"),
        ({"response_format": wanted({"not": {"type": "string"}})}, "response_format"),
        ({"response_format": wanted({"not": {}, "x-guidance": {"lenient": True}})}, "response_format"),
        ({"response_format": wanted({"$ref": "file:///etc/passwd"})}, "response_format"),
        ({"response_format": wanted({"$ref": "http://127.0.0.1:1/x"})}, "response_format"),
        ({"response_format": wanted({"$ref": "#/$defs/missing"})}, "response_format"),
        ({"response_format": wanted({"type": "string", "pattern": "(a*)*b" * 10 + "("})}, "response_format"),
        ({"response_format": wanted({"enum": ["a" * 20_000]})}, "response_format"),
        ({"response_format": OBJECT, "stop": "x"}, "stop"),
        ({"response_format": OBJECT, "extra_body": {"min_tokens": 3}}, "min_tokens"),
        ({"response_format": OBJECT, "extra_body": {"grammar": 'root ::= "a"'}}, "grammar"),
        ({"extra_body": {"grammar": "root ::= ("}}, "grammar"),
        ({"extra_body": {"grammar": "root ::= root"}}, "grammar"),  # nothing obeys it
        ({"extra_body": {"grammar": "start: @other"}}, "grammar"),
        ({"extra_body": {"grammar": "(" * 5000}}, "grammar"),
        ({"extra_body": {"grammar": "a" * 20_000}}, "grammar"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**CHAT, **options)
    assert raised.value.param == param
    assert "\n" not in raised.value.message


def test_a_grammar_that_takes_too_much_work(client: openai.OpenAI) -> None:
    endless = {"grammar": 'root ::= "0" root'}
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**CHAT, extra_body=endless)
    assert raised.value.code == "grammar_failed"


HI = r"\01\00\00\00\06\00\00\00\00\00\00\00\00\00\00\00\02\00\00\00hi"
STOPPED = r"\02\00\00\00\01\00\00\00\01\00\00\00"
H_DRAWN = r"\03\00\00\00\6c\00\00\00"
"""Token 0x6c is "h" in the tiny model's vocabulary."""


@pytest.mark.parametrize(
    "said",
    [
        (HI, r"\16"),  # was not drawn
        (STOPPED, r"\0c"),  # too early
        (r"\03\00\00\00\6b\00\00\00", r"\08"),  # not allowed
        (r"\03\00\00\00\ff\ff\ff\ff", r"\08"),  # no token
        (r"\03\00\00\00\02\00\00\00", r"\08"),  # an end, too early
        (H_DRAWN + HI, r"\1e"),  # another text
        (H_DRAWN + STOPPED, r"\14"),  # drawn and not written
    ],
    ids=["not drawn", "ends early", "not allowed", "no token", "an end token", "another text", "unwritten"],
)
def test_a_guest_cannot_leave_the_grammar(tiny: Model, said: tuple[str, str]) -> None:
    assert bytes(tiny.tokenizer.pieces()[0x6C]) == b"h"
    with serving(Engine([tiny], ServerLimits(running=1, seconds=5), guest=(WRITES % said).encode())) as server:
        status, body, _ = server.ask("/v1/chat/completions", CHAT | {"grammar": 'root ::= "hello"'})
    assert (status, body["error"]["code"]) == (500, "completion_failed")
    assert re.search("the guest (drew|wrote|ended)", body["error"]["message"])


@pytest.fixture(scope="module")
def smol(smollm2: Path, cpu: Device) -> Iterator[openai.OpenAI]:
    with (
        load_model("smollm2:135m", cpu, context=512, contexts=3) as model,
        serving(Engine([model], ServerLimits(running=2))) as server,
    ):
        yield server.client()


@pytest.mark.model
def test_smollm2_fills_a_form(smol: openai.OpenAI) -> None:
    form = {
        "type": "object",
        "properties": {"capital": {"type": "string"}, "continent": {"enum": ["Europe", "Asia", "Africa"]}},
        "required": ["capital", "continent"],
        "additionalProperties": False,
    }
    answer = smol.chat.completions.create(
        model="smollm2:135m",
        messages=[{"role": "user", "content": "What is the capital of France? Answer in JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "form", "schema": form, "strict": True}},
        temperature=0,
        max_tokens=60,
    )
    assert json.loads(answer.choices[0].message.content or "")["capital"] == "Paris"
