from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny import CHAT_TEMPLATE
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.lm import chat_template
from wasmetal.models.lm.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "Hello <you> & all"}]

# The template of Llama 3, as published, and what `transformers` renders with it.
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@pytest.fixture(params=[False, True], ids=["in a worker", "trusted"])
def trusted(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_chatml(trusted: bool) -> None:
    template = ChatTemplate(CHAT_TEMPLATE, trusted=trusted)
    prompt = "<|im_start|>user\nHello <you> & all<|im_end|>\n"
    assert template.render(HELLO) == prompt + "<|im_start|>assistant\n"
    assert template.render(HELLO, add_generation_prompt=False) == prompt


def test_llama_3_writes_bos_once(trusted: bool) -> None:
    messages = [*HELLO, {"role": "assistant", "content": " Hi "}]
    assert ChatTemplate(LLAMA_3, bos="<|begin_of_text|>", trusted=trusted).render(messages) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello <you> & all<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),  # blocks' lines leave nothing (trim_blocks, lstrip_blocks)
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hello <you> & all"}]'),
        ("{{ {'a': 'ü'} | tojson(indent=1) }}", '{\n "a": "ü"\n}'),
        ("{% set ns = namespace(n=1) %}{% for i in range(3) %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "4"),
        ("{{ tools is none }}{{ nothing is defined }}{{ dict(a=1).a }}{{ '-' * 3 }}{{ 2 ** 5 }}", "TrueFalse1---32"),
        ("{{ strftime_now('%%') }}{{ 'a b' | wordwrap(1) | pprint }}", "%'a\\nb'"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
    ],
)
def test_environment(source: str, text: str, trusted: bool) -> None:
    assert ChatTemplate(source, trusted=trusted).render(HELLO) == text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for %}", "chat template cannot be read: .*end of statement block"),
        ("{{ " + "(" * 50000 + ")" * 50000 + " }}", "chat template cannot be read"),
        ("x" * (chat_template.MAX_SOURCE + 1), "chat template of 262145 characters; at most 262144"),
        ("{{ raise_exception('two\nlines') }}", "chat template failed: two lines"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 + 'a' }}", "chat template failed: unsupported operand"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_failures_are_one_line(source: str, said: str, trusted: bool) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        ChatTemplate(source, trusted=trusted).render(HELLO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ dict.__subclasses__() }}",
        "{{ '{0.__class__.x}'.format(messages) }}",
    ],
)
def test_the_sandbox_holds(source: str, trusted: bool) -> None:
    with pytest.raises(ModelError, match=r"^chat template "):
        ChatTemplate(source, trusted=trusted).render(HELLO)


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now> & später",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
# Own, in the manner of published ones.
WITH_TOOLS = (
    "{%- if tools %}\n{{- '# Tools\\n' }}\n{%- for tool in tools %}\n{{- tool | tojson ~ '\\n' }}\n{%- endfor %}\n"
    "{%- endif %}\n{%- for message in messages %}\n{%- if message.tool_calls is defined %}\n"
    "{%- for call in message.tool_calls %}\n{{- call.function.name ~ call.function.arguments | tojson }}\n"
    "{%- endfor %}\n"
    "{%- elif message.role == 'tool' %}\n{{- '=' ~ message.content }}\n{%- else %}\n{{- message.content ~ ';' }}\n"
    "{%- endif %}\n{%- endfor %}"
)


def test_tools(trusted: bool) -> None:
    template = ChatTemplate(WITH_TOOLS, trusted=trusted)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Köln"}}}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "rain"}]
    assert template.render(messages, tools=[TOOL]) == (
        '# Tools\n{"type": "function", "function": {"name": "weather", "description": "The weather <now> & später", '
        '"parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}}}\n'
        'Hello <you> & all;weather{"place": "Köln"}=rain'
    )
    assert template.render(HELLO) == "Hello <you> & all;"


def test_a_template_of_its_own_for_tools(trusted: bool) -> None:
    template = ChatTemplate("plain", trusted=trusted)
    template.with_tools = ChatTemplate("{{ tools | length }}", trusted=trusted)
    assert (template.render(HELLO), template.render(HELLO, tools=[TOOL])) == ("plain", "1")


def test_variables(trusted: bool) -> None:
    source = "{{ enable_thinking is defined and enable_thinking }}{{ documents is none }}{{ add_generation_prompt }}"
    template = ChatTemplate(source, trusted=trusted)
    assert template.render(HELLO) == "FalseTrueTrue"
    given = {"enable_thinking": True, "documents": [], "add_generation_prompt": "x", "messages": 1}
    assert template.render(HELLO, False, variables=given) == "TrueFalseFalse"
    with pytest.raises(ModelError, match="not plain data"):
        template.render(HELLO, tools=[{"function": len}])


@pytest.mark.parametrize("messages", [[{"role": "user", "content": object()}], object()])
def test_messages_that_are_no_plain_data(messages: Any) -> None:
    with pytest.raises(ModelError, match=r"^the messages are not plain data: .* not JSON serializable"):
        ChatTemplate(CHAT_TEMPLATE).render(messages)


@pytest.mark.parametrize("text", ["ü\0\r\n", "half a pair: \ud800", "😀" * 100_000])
def test_texts_arrive_unchanged(text: str, trusted: bool) -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ eos_token }}", eos="\ud801", trusted=trusted)
    assert template.render([{"role": "user", "content": text}]) == text + "\ud801"


@pytest.mark.model
def test_smollm2_has_a_default_system_prompt(smollm2: Path) -> None:
    template = ChatTemplate(GGUFFile(smollm2).require("tokenizer.chat_template", str))
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    turn = "<|im_start|>user\nHello <you> & all<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(HELLO) == system + turn
    own = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert template.render(own) == "<|im_start|>system\nBe brief.<|im_end|>\n" + turn


@pytest.mark.model
def test_a_known_model_is_trusted(smollm2: Path, cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_pool", None)
    with load_model("smollm2:135m", cpu, context=64) as model:
        assert model.chat_template
        assert model.chat_template.render(HELLO).endswith("<|im_start|>assistant\n")
    with pytest.raises(AttributeError):
        load_model(smollm2, cpu, context=64)
