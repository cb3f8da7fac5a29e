"""Calls in answers, as published for each family of models, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmetal.serve.tools.formats import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, Format
from wasmetal.serve.tools.parsing import Argued, Called, CallParser, Said

NAMES = ("get_stock_fundamentals", "get_current_weather", "get_current_temperature", "a", "b")
Read = tuple[str, list[tuple[str, Any]]]

PUBLISHED: list[tuple[Format, str, str, list[tuple[str, Any]]]] = [
    # https://huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B
    (
        HERMES,
        '<tool_call>\n{"arguments": {"symbol": "TSLA"}, "name": "get_stock_fundamentals"}\n</tool_call>',
        "",
        [("get_stock_fundamentals", {"symbol": "TSLA"})],
    ),
    # https://qwen.readthedocs.io/en/latest/framework/function_call.html
    (
        HERMES,
        '<tool_call>\n{"name": "get_current_temperature", "arguments": {"location": "San Francisco, CA, USA"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "get_current_temperature", "arguments": {"location": "x", "date": '
        '"2024-10-01"}}\n</tool_call>',
        "",
        [
            ("get_current_temperature", {"location": "San Francisco, CA, USA"}),
            ("get_current_temperature", {"location": "x", "date": "2024-10-01"}),
        ],
    ),
    # https://huggingface.co/HuggingFaceTB/SmolLM2-1.7B-Instruct: a list
    (
        HERMES,
        '<tool_call>[{"name": "a", "arguments": {"x": 1}}, {"name": "b"}]</tool_call>',
        "",
        [("a", {"x": 1}), ("b", {})],
    ),
    (
        HERMES,
        'I look.\n<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>',
        "I look.",
        [("a", {"x": 1})],
    ),
    (
        HERMES,
        '<tool_call>\n{"name": "a", "arguments": {"s": "</tool_call> \\"}"}}',
        "",
        [("a", {"s": '</tool_call> "}'})],
    ),
    (HERMES, 'no <tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>!', None, []),
    (HERMES, "no <tool_call> at all </tool_call>", None, []),
    (HERMES, '<tool_call>{"name": "a", "arguments": [1]}</tool_call>', None, []),
    (HERMES, "a < b, <tool>, <tool_call", None, []),
    (HERMES, "text alone \n", None, []),
    # https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
    (
        LLAMA,
        '{"name": "get_current_weather", "parameters": {"location": "San Francisco, CA"}}',
        "",
        [("get_current_weather", {"location": "San Francisco, CA"})],
    ),
    (
        LLAMA,
        '<|python_tag|>{"type": "function", "name": "a", "parameters": {"n": "5"}}; {"name": "b", "parameters": {}}',
        "",
        [("a", {"n": "5"}), ("b", {})],
    ),
    (LLAMA, '{"name": "Bob", "age": 3}', None, []),
    (LLAMA, 'Call {"name": "a", "parameters": {}}', None, []),
    (LLAMA, "<|python_tag|>print(1)", None, []),
    (LLAMA, '{"name": "a", "parameters": {"x"', "", [("a", '{"x"')]),  # cut off
    # https://docs.mistral.ai/capabilities/function_calling/, tokenizer v3
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "get_current_weather", "arguments": {"location": "Paris, France", "format": '
        '"celsius"}}]',
        "",
        [("get_current_weather", {"location": "Paris, France", "format": "celsius"})],
    ),
    (
        MISTRAL,
        '[TOOL_CALLS][{"name": "a", "arguments": {"l": [1, {"x": "]"}]}, "id": "VvvODy9mT"}, {"name": "b", '
        '"arguments": {}, "id": "x"}]',
        "",
        [("a", {"l": [1, {"x": "]"}]}), ("b", {})],
    ),
    # https://github.com/mistralai/mistral-common: tokenizers v11 and v13
    (
        MISTRAL_ARGS,
        'Yes.[TOOL_CALLS]a[CALL_ID]VvvODy9mT[ARGS]{"x": "[ARGS]{"}[TOOL_CALLS]b[ARGS]{}',
        "Yes.",
        [("a", {"x": "[ARGS]{"}), ("b", {})],
    ),
    (MISTRAL_ARGS, '[TOOL_CALLS]a{"x": 1}', "", [("a", {"x": 1})]),
    (MISTRAL_ARGS, "[TOOL_CALLS]a and b", None, []),
]


def read(form: Format, text: str, cuts: Sequence[int]) -> Read:
    parser, pieces, at = CallParser(form, NAMES), [], 0
    for cut in cuts:
        pieces += parser.feed(text[at:cut])
        at = cut
    pieces += parser.feed(text[at:], final=True)
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, Called):
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        elif isinstance(piece, Argued):
            assert piece.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    assert parser.calls == len(calls)
    return "".join(piece.text for piece in pieces if isinstance(piece, Said)), [
        (name, _json(arguments)) for name, arguments in calls
    ]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize(("form", "text", "said", "calls"), PUBLISHED, ids=lambda value: str(value)[:30])
def test_published_answers_cut_anywhere(
    form: Format, text: str, said: str | None, calls: list[tuple[str, Any]]
) -> None:
    expected = text if said is None else said, calls
    assert read(form, text, []) == expected
    for cut in range(len(text)):
        assert read(form, text, [cut]) == expected
    assert read(form, text, range(len(text))) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


CALL = st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=8), JSON, max_size=3))
PARTS = (
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '{"name": "a"', '"arguments": {', "}", "a"),
    *("[ARGS]", "[", "]", " \n", '"', "\\", ",", "x < y"),
)


@given(
    form=st.sampled_from([HERMES, LLAMA, MISTRAL, MISTRAL_ARGS]),
    calls=st.lists(CALL, min_size=1),
    ascii=st.booleans(),
    data=st.data(),
)
def test_any_arguments_cut_anywhere(
    form: Format, calls: list[tuple[str, dict[str, Any]]], ascii: bool, data: st.DataObject
) -> None:
    written = [
        form.before + name + form.between + json.dumps(arguments, ensure_ascii=ascii) + form.after
        for name, arguments in calls
    ]
    separator = form.separator + (form.opening if form.repeats else "")
    text = form.opening + form.first + separator.join(written) + form.last
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    assert read(form, text, cuts) == ("", calls)


@given(
    form=st.sampled_from([HERMES, LLAMA, MISTRAL, MISTRAL_ARGS]),
    parts=st.lists(st.sampled_from(PARTS), max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=4).map(sorted),
)
def test_anything_at_all(form: Format, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    whole = read(form, text, [])
    assert read(form, text, cuts) == whole
    if not whole[1]:
        assert whole[0].rstrip() == text.rstrip()
