"""Chat templates that would take all time or memory: they cost a worker process, not this one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import tiny
from tests.security.peak import MIB, growth_below
from wasmetal import load_model
from wasmetal.device import Device
from wasmetal.errors import ModelError
from wasmetal.models.lm import chat_template, jinja_template
from wasmetal.models.lm.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "Hello"}]


def repeated(times: int, statement: str, then: str, start: str = "x=[0], y=[0]") -> str:
    loop = "{% for i in range(" + str(times) + ") %}" + statement + "{% endfor %}"
    return "{% set ns = namespace(" + start + ") %}" + loop + then


SLOW = {
    "comparing nested lists": repeated(
        60, "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}", "{{ ns.x == ns.y }}"
    ),
    "hashing nested tuples": repeated(60, "{% set ns.x = (ns.x, ns.x) %}", "{{ {ns.x: 1}|length }}", "x=(0,)"),
    "loops in loops": "{% for i in range(100000) %}" * 4 + "{% endfor %}" * 4,
    "a power": "{{ messages|length * 9 ** (9 ** 9) }}",
}
LARGE = {
    "a number in a billion places": "{{ '%0900000000d' % 1 }}",
    "centred": "{{ 'a'|center(900000000) }}",
    "replaced": "{{ '" + "a" * 30000 + "'|replace('a', '" + "b" * 30000 + "') }}",
    "indented": "{{ 'a\nb'|indent(900000000) }}",
    "indented JSON": "{{ [1]|tojson(indent=900000000) }}",
    "formatted": "{{ '{:>900000000}'.format(messages[0].role) }}",
    "multiplied": "{{ 'x' * 10 ** 10 }}",
    "a doubled string": repeated(26, "{% set ns.x = ns.x ~ ns.x %}", "{{ ns.x|length }}", "x='aaaaaaaaaaaaaaaa'"),
    "a doubled list": repeated(17, "{% set ns.x = ns.x + ns.x %}", "{{ ns.x|length }}", "x=[0]*1000"),
    "nested lists as JSON": repeated(27, "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x|tojson|length }}"),
}
REFUSED = r"^the chat template (takes more than [0-9.]+ seconds|needs more than [0-9]+ MiB of memory); if you trust it"


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """No test lets this process's memory grow much."""
    with growth_below(200 * MIB):
        yield


QUICK = (
    "comparing nested lists",
    "a power",
    "a number in a billion places",
    "a doubled string",
    "nested lists as JSON",
)
BOMBS = [
    pytest.param(source, id=name, marks=[] if name in QUICK else pytest.mark.slow)
    for name, source in (SLOW | LARGE).items()
]


@pytest.mark.parametrize("source", BOMBS)
def test_bombs(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(chat_template, "MAX_MEMORY", 64 * MIB)
    began = time.monotonic()
    with pytest.raises(ModelError, match=REFUSED):
        ChatTemplate(source).render(HELLO)
    assert time.monotonic() - began < 2 * 1.0 + 5
    assert ChatTemplate("{{ messages[0].content }}").render(HELLO) == "Hello"


def test_other_threads_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 3.0)
    template = ChatTemplate(SLOW["comparing nested lists"])

    def render() -> None:
        with pytest.raises(ModelError, match=REFUSED):
            template.render(HELLO)

    refused = threading.Thread(target=render)
    refused.start()
    longest, before = 0.0, time.monotonic()
    while refused.is_alive():
        time.sleep(0.01)
        now = time.monotonic()
        longest, before = max(longest, now - before), now
    assert longest < 2


def test_a_template_that_writes_too_much() -> None:
    source = "{% for i in range(messages[0].times) %}" + "x" * 1024 + "{% endfor %}"
    most = jinja_template.MAX_OUTPUT // 1024
    assert len(ChatTemplate(source).render([{"times": most}])) == jinja_template.MAX_OUTPUT
    with pytest.raises(ModelError, match=r"^chat template failed: wrote more than 16777216 characters$"):
        ChatTemplate(source).render([{"times": most + 1}])


def test_a_model_is_trusted_only_if_said_so(cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", "{{ 9 ** (9 ** 9) }}")
    path = tiny.write_tiny_llama(tmp_path / "bomb.gguf")
    with pytest.raises(ModelError, match=REFUSED):
        load_model(path, cpu)
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", "{{ messages[0].content }}")
    path = tiny.write_tiny_llama(tmp_path / "tiny.gguf")
    monkeypatch.setattr(chat_template, "_pool", None)
    with load_model(path, cpu, trusted=True) as model:
        assert model.chat_template
        assert model.chat_template.render(HELLO) == "Hello"
