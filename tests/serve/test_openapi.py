"""The description of the API, and requests at random that are made from it: none is an error of the server."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.serve.serving import PATIENCE, Serving
from tests.serve.test_structured import CHAT
from tests.serve.test_tools import CALL, TIME, WEATHER
from wasmetal.serve.app import application
from wasmetal.serve.engine import Engine
from wasmetal.serve.openapi import BODIES, describe

schemathesis = pytest.importorskip("schemathesis")
DESCRIPTION = describe(application(Engine([])).routes)
SCHEMAS = DESCRIPTION["components"]["schemas"]
PATHS = sorted(BODIES)
MOST_TOKENS = 3


def schema_of(path: str) -> dict[str, Any]:
    """The schema of a path's body, on its own."""
    reference = DESCRIPTION["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    text = json.dumps({"$ref": reference, "$defs": SCHEMAS}).replace("#/components/schemas/", "#/$defs/")
    return json.loads(text)


def test_the_description_is_what_is_served(served: Serving) -> None:
    status, body, headers = served.ask("/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert body == json.loads(json.dumps(DESCRIPTION))
    routes = {(route.path, method) for route in application(Engine([])).routes for method in route.methods - {"HEAD"}}
    described = {(path, method.upper()) for path, item in body["paths"].items() for method in item}
    assert described == {(re.sub(r":path}", "}", path), method) for path, method in routes}
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(body)):
        Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize(
    ("path", "body", "good"),
    [
        ("/v1/chat/completions", CHAT | {"tools": [WEATHER, TIME], "tool_choice": "auto", "messages": CALL}, True),
        ("/v1/chat/completions", CHAT | {"response_format": {"type": "json_object"}}, True),
        ("/v1/chat/completions", CHAT | {"temperature": 3}, False),
        ("/v1/chat/completions", CHAT | {"unknown": 3}, False),
        ("/v1/completions", {"model": "tiny", "prompt": [[1, 2], [3]], "max_tokens": 2}, True),
        ("/v1/completions", {"model": "tiny", "prompt": 1}, False),
        ("/v1/responses", {"model": "tiny", "input": "x", "max_output_tokens": 2}, True),
        ("/v1/responses", {"model": "tiny", "input": [{"role": "user", "content": "x"}], "max_output_tokens": 2}, True),
        ("/v1/responses", {"model": "tiny", "input": []}, False),
        ("/v1/conversations", {"items": [1]}, False),
        ("/tokenize", {"model": "tiny", "prompt": "x"}, True),
        ("/detokenize", {"model": "tiny"}, False),
    ],
)
def test_the_description_says_what_the_server_takes(served: Serving, path: str, body: Any, good: bool) -> None:
    assert Draft202012Validator(schema_of(path)).is_valid(body) == good
    assert served.ask(path, body)[0] == (200 if good else 400)


def small(path: str, body: Any) -> Any:
    """The same, for a model that there is, and so that it does not take long."""
    if isinstance(body, dict) and path != "/v1/conversations":
        body = body | {"model": "vectors" if path == "/v1/embeddings" else "tiny"}
    if isinstance(body, dict) and path == "/v1/responses":
        body = body | {"max_output_tokens": MOST_TOKENS}
    if isinstance(body, dict) and "completions" in path:
        body = body | {"max_tokens": MOST_TOKENS} | ({"max_completion_tokens": 2} if "chat" in path else {})
    return body


def answered(served: Serving, path: str, data: bytes, kind: str = "application/json") -> int:
    """The status of the answer, which is one of those that clients expect."""
    connection = http.client.HTTPConnection(served.host, served.port, timeout=PATIENCE)
    try:
        connection.request("POST", path, data, {"Content-Type": kind})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        Draft202012Validator(SCHEMAS["Error"]).validate(json.loads(content))
        assert "\n" not in json.loads(content)["error"]["message"]
    assert response.status < 500, content
    assert b'"server_error"' not in content
    return response.status


OPERATIONS = schemathesis.openapi.from_dict(DESCRIPTION)
MODES = list(schemathesis.GenerationMode)  # what the description allows, and what it does not
CASES = {(path, mode): OPERATIONS[path]["POST"].as_strategy(generation_mode=mode) for path in PATHS for mode in MODES}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fuzz = settings(suppress_health_check=list(HealthCheck))


@fuzz
@given(key=st.sampled_from(sorted(CASES)), data=st.data())
def test_bodies_by_the_description(served: Serving, key: tuple[str, Any], data: st.DataObject) -> None:
    path, body = key[0], data.draw(CASES[key]).body
    sent = body if isinstance(body, bytes) else json.dumps(small(path, body)).encode()
    assert answered(served, path, sent) in (200, 400, 404)


@fuzz
@given(path=st.sampled_from(PATHS), data=st.data(), junk=JUNK)
def test_a_field_that_is_junk(served: Serving, path: str, data: st.DataObject, junk: Any) -> None:
    body = data.draw(CASES[path, schemathesis.GenerationMode.POSITIVE]).body
    field = data.draw(st.sampled_from([*SCHEMAS[BODIES[path].__name__]["properties"], "other"]))
    assert answered(served, path, json.dumps(small(path, body | {field: junk})).encode()) in (200, 400, 404)


@fuzz
@given(path=st.sampled_from(PATHS), raw=st.binary() | JUNK.map(lambda junk: json.dumps(junk).encode()))
def test_what_is_no_body(served: Serving, path: str, raw: bytes) -> None:
    assert answered(served, path, raw) == 400
    assert answered(served, path, raw, "text/plain") == 415


SCHEMA = st.recursive(
    st.sampled_from(
        [{}, {"type": "string"}, {"type": "integer"}, {"const": 1}, {"pattern": "^a"}, {"$ref": "#"}, {"not": {}}, True]
    )
    | st.dictionaries(st.sampled_from(["type", "enum", "minimum", "maxLength", "format", "$ref", "required"]), JUNK),
    lambda inner: (
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(st.text(max_size=4), inner)})
        | st.fixed_dictionaries({"items": inner, "minItems": st.integers(-1, 3)})
    ),
    max_leaves=6,
)


@fuzz
@given(schema=SCHEMA, grammar=st.text('root:= ab"|()[]*{}0', max_size=40))
def test_schemas_and_grammars(served: Serving, schema: Any, grammar: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "x", "parameters": schema}}
    for extra in ({"response_format": form}, {"tools": [tool], "tool_choice": "required"}, {"grammar": grammar}):
        body = CHAT | extra | {"max_tokens": 20}
        assert answered(served, "/v1/chat/completions", json.dumps(body).encode()) in (200, 400)
