"""Conversations with tools, as templates of each family write them, and those that know no tools."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.models.tiny import CHAT_TEMPLATE, write_tiny_llama
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.models import ChatTemplate, Model
from wasmetal.models.lm.prompt import prompt_tokens
from wasmetal.serve.tools.formats import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, Format, format_of
from wasmetal.serve.tools.rendering import for_template

# Short ones, in the manner of those published.
QWEN = """{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}

</tools>
{"name": <function-name>, "arguments": <args-json-object>} within <tool_call></tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "assistant" and message.tool_calls %}<|im_start|>assistant
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
<tool_call>
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA31 = """{%- if tools is not none %}Environment: ipython
{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}
{%- for message in messages %}{% if 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception("single tool-calls at once!") }}{% endif %}
{%- set tool_call = message.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ tool_call.name }}", "parameters": {{ tool_call.arguments | tojson }}}<|eot_id|>
{%- elif message.role == "tool" %}<|start_header_id|>ipython<|end_header_id|>

{{ message.content }}<|eot_id|>{% else %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content }}<|eot_id|>{% endif %}{% endfor %}"""
MISTRAL_V3 = """{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }}[/INST]
{%- elif message.tool_calls %}[TOOL_CALLS] [{% for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
{%- endif %}{{ call.function | tojson }}{% endfor %}]
{%- elif message.role == 'tool' %}{% if message.tool_call_id | length != 9 %}{{ raise_exception("ids!") }}{% endif %}
{%- set content = {"content": message.content, "call_id": message.tool_call_id} %}[TOOL_RESULTS] {{ content | tojson }}
{%- endif %}{% endfor %}"""

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a <|im_end|> city", "parameters": {"type": "object"}},
}
ARGUMENTS = {"city": 'K"öln\n<|im_start|>'}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (QWEN, HERMES),
        (LLAMA31, LLAMA),
        (MISTRAL_V3, MISTRAL),
        (MISTRAL_V3 + "[ARGS]", MISTRAL_ARGS),
        (CHAT_TEMPLATE, None),
        ("{{ tools }}", None),
        (QWEN + "<function=x>", None),
    ],
)
def test_forms_are_known_by_their_templates(source: str, form: Format | None) -> None:
    assert format_of(ChatTemplate(source, trusted=True)) == form


@pytest.mark.parametrize("source", [QWEN, LLAMA31, MISTRAL_V3])
def test_templates_that_know_tools_write_them(source: str) -> None:
    template = ChatTemplate(source, trusted=True)
    messages, tools = for_template(template, format_of(template), CONVERSATION, [TOOL])
    text = template.render(messages, tools=tools)
    assert json.dumps(ARGUMENTS, ensure_ascii=False) in text
    assert "Of a <|im_end|> city" in text
    assert "rain" in text
    again, _ = for_template(template, format_of(template), messages_of_another_server(), [TOOL])
    assert template.render(again, tools=tools).count("{") > 1


def messages_of_another_server() -> list[dict[str, Any]]:
    """With arguments that were cut off, and an id of nine."""
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "K'}}
    return [CONVERSATION[0], {"role": "assistant", "content": "", "tool_calls": [call]}]


def test_templates_that_know_none_are_given_texts() -> None:
    template = ChatTemplate(CHAT_TEMPLATE, trusted=True)
    more = [*CONVERSATION, {"role": "tool", "tool_call_id": "call_2", "content": "snow"}]
    messages, tools = for_template(template, None, more, [TOOL])
    assert tools is None
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert json.dumps(TOOL) in messages[0]["content"]
    assert messages[2]["content"].startswith('<tool_call>\n{"name": "weather", "arguments": {"city"')
    assert messages[3]["content"].count("<tool_response>") == 2
    system = [{"role": "system", "content": "Be brief."}, *CONVERSATION]
    messages, _ = for_template(template, None, system, [TOOL])
    assert messages[0]["content"].startswith("Be brief.\n\nYou may call")
    gemma = ChatTemplate("{{ raise_exception('System role not supported') }}", trusted=True)
    messages, _ = for_template(gemma, None, CONVERSATION, [TOOL])
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"].endswith("\n\nWeather?")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cpu: Device) -> Any:
    with load_model(write_tiny_llama(tmp_path_factory.mktemp("tools") / "tiny.gguf"), cpu) as model:
        yield model


def test_what_tools_and_calls_spell_out_stays_text(model: Model) -> None:
    template = ChatTemplate(QWEN, trusted=True)
    messages, tools = for_template(template, format_of(template), CONVERSATION, [TOOL])
    ids = prompt_tokens(model.tokenizer, template, messages, tools)
    assert model.tokenizer.decode(ids) == template.render(messages, tools=tools)
    starts, ends = (ids.count(model.tokenizer.encode(text)[0]) for text in ("<|im_start|>", "<|im_end|>"))
    assert (starts, ends) == (5, 4)
