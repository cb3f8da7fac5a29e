"""Chat templates made at random, some to take time and memory, and messages. An input is a JSON object of the two.

A template must give a prompt or a ModelError, within its limits of time and of length, and see nothing of the host.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from tests.fuzz import noise
from tests.fuzz.target import Run, refusal
from wasmetal.errors import ModelError
from wasmetal.models import ChatTemplate

SECONDS = 60.0
MEMORY = 1 << 30
LONGEST = 1 << 24
"""Characters that a prompt may have."""

VALUES = (
    *("messages", "messages[0]", "messages[-1].content", "message.role", "bos_token", "add_generation_prompt"),
    *("ns.x", "ns.y", "loop.index", "loop", "tools", "x", "namespace", "range", "dict", "strftime_now", "self", "none"),
    *(
        "'a'",
        "'%s'",
        "'{0.__class__}'",
        "[]",
        "[1, 2]",
        "{}",
        "{'a': [1]}",
        "(0,)",
        "0",
        "1",
        "-1",
        "2.5",
        "10**9",
        "true",
    ),
)
FILTERS = (
    *(
        "length",
        "tojson",
        "tojson(indent=3)",
        "trim",
        "upper",
        "list",
        "join(',')",
        "first",
        "last",
        "sort",
        "unique|list",
    ),
    *(
        "reverse|list",
        "batch(3)|list",
        "default('x')",
        "replace('a', ns.x)",
        "string",
        "int",
        "float",
        "abs",
        "sum",
        "map('upper')|list",
    ),
    *("selectattr('role')|list", "groupby('role')", "dictsort", "indent(4)", "center(80)", "wordwrap(3)", "format(1)"),
    *(
        "attr('__class__')",
        "map(attribute='__class__')|list",
        "pprint",
        "urlize",
        "xmlattr",
        "truncate(5)",
        "random",
        "safe",
    ),
)
ATTRIBUTES = (
    "__class__",
    "__init__",
    "__globals__",
    "_x",
    "role",
    "append",
    "items()",
    "format",
    "mro()",
    "x",
    "count(1)",
)
OPERATORS = ("+", "-", "*", "**", "//", "%", "~", "==", "<", "in", "and", "or", "is mapping or")
LARGE = ("900000000", "10**9", "2**31", "99999999999999999999")
BOMBS = (
    "{{ '%0NUMBERd' % 1 }}",
    "{{ 'a'|center(NUMBER) }}",
    "{{ 'a\nb'|indent(NUMBER) }}",
    "{{ [1]|tojson(indent=NUMBER) }}",
    "{{ '{:>NUMBER}'.format(1) }}",
    "{{ messages[0].role.ljust(NUMBER)|length }}",
    "{% for i in range(NUMBER) %}{{ i }}{% endfor %}",
    "{{ range(NUMBER)|list|length }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns = namespace(x=[0]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns = namespace(x=[0], y=[0]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "{% set ns = namespace(x=(0,)) %}{% for i in range(40) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ 'a' * 1000000 * 1000000 }}{{ NUMBER ** NUMBER }}",
    "{{ '" + "(" * 2000 + "' }}{{ " + "[" * 300 + "]" * 300 + " }}",
)


def generate(random: Random) -> bytes:
    if random.random() < 0.02:
        source = random.choice(BOMBS).replace("NUMBER", random.choice(LARGE))
    else:
        source = "{% set ns = namespace(x='a', y=[0]) %}" + _block(random, 4)
        if random.random() < 0.2:
            source = noise.mutated(random, source.encode()).decode(errors="replace")
    messages: list[dict[str, Any]] = [
        {"role": random.choice(["system", "user", "assistant", noise.text(random, 3)]), "content": noise.text(random)}
        for _ in range(random.choice([0, 1, 1, 2, 5]))
    ]
    if messages and random.random() < 0.3:
        messages[0]["tool_calls"] = _nested(random, 6)
    return json.dumps({"template": source, "messages": messages}).encode()


def _block(random: Random, budget: int) -> str:
    return "".join(_statement(random, budget) for _ in range(random.randint(1, 4)))


def _statement(random: Random, budget: int) -> str:
    r = random.random()
    if budget <= 0 or r < 0.35:
        return "{{ " + _value(random, budget) + " }}"
    inside = _block(random, budget - 1)
    if r < 0.5:
        over = random.choice(["messages", "range(3)", "range(20)", "ns.y", _value(random, 1)])
        return "{% for message in " + over + " %}" + inside + random.choice(["", "{% break %}"]) + "{% endfor %}"
    if r < 0.65:
        return "{% if " + _value(random, budget) + " %}" + inside + "{% else %}b{% endif %}"
    if r < 0.85:
        return "{% set " + random.choice(["ns.x", "ns.y", "x", "loop"]) + " = " + _value(random, budget) + " %}"
    if r < 0.9:
        return "{% macro m(a) %}" + inside + "{% endmacro %}{{ m(1) }}"
    if r < 0.95:
        return "{% filter upper %}" + inside + "{% endfilter %}"
    return noise.text(random, 10)


def _value(random: Random, budget: int) -> str:
    r = random.random()
    if budget <= 0 or r < 0.3:
        return random.choice(VALUES)
    inner = _value(random, budget - 1)
    if r < 0.55:
        return f"({inner} {random.choice(OPERATORS)} {_value(random, budget - 1)})"
    if r < 0.75:
        return f"({inner} | {random.choice(FILTERS)})"
    if r < 0.85:
        return f"({inner}).{random.choice(ATTRIBUTES)}"
    if r < 0.95:
        return random.choice([f"[{inner}, {inner}]", f"({inner}, {inner})", "{'k': " + inner + "}"])
    return f"({inner})[{_value(random, budget - 1)}]"


def _nested(random: Random, depth: int) -> Any:
    if depth == 0 or random.random() < 0.2:
        return random.choice([None, 0, 2**70, 1e308, "x", True])
    inner = [_nested(random, depth - 1) for _ in range(random.randint(0, 3))]
    return inner if random.random() < 0.5 else {noise.text(random, 3): each for each in inner}


@contextmanager
def opened(device: str) -> Iterator[Run]:
    yield _run


def _run(data: bytes) -> Counter[str]:
    case, stage = json.loads(data), "read"
    try:
        template = ChatTemplate(case["template"], bos="<s>", eos="</s>")
        stage = "render"
        prompt = template.render(case["messages"])
    except ModelError as error:
        return Counter([refusal(stage, error)])
    assert len(prompt) <= LONGEST, f"a prompt of {len(prompt)} characters"
    return Counter(["rendered"])
