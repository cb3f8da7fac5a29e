"""Conversations to prompts, with the Jinja template in a model file.

The environment is the one that Hugging Face renders chat templates in, so that templates behave as their authors
intended. A template is an untrusted program: it runs in Jinja's sandbox, on plain copies of the messages, within
MAX_SECONDS and MAX_OUTPUT. Memory is bounded less tightly: only the operators with large results are limited.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from wasmetal.errors import ModelError

MAX_SOURCE = 1 << 18
"""Most characters of a template; published ones have up to about 20,000."""
MAX_OUTPUT = 1 << 24
"""Most characters of a prompt."""
MAX_SECONDS = 5.0
"""Longest time that one rendering may take."""
_MAX_OPERAND = 1 << 20
"""Most elements of a sequence, or bits of a number, that ``*`` and ``**`` may produce."""


class ChatTemplate:
    """A compiled template.

    ``bos`` and ``eos`` are the texts of those tokens, which templates refer to. Raises ModelError if the source is not
    a template.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = ""):
        if len(source) > MAX_SOURCE:
            raise ModelError(f"chat template of {len(source)} characters; at most {MAX_SOURCE} are supported")
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        with _refusals("cannot be read"):
            self._template: Template = _Environment().from_string(source)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation.

        Each message has a ``role`` ("system", "user", "assistant") and a ``content``, and whatever else the template
        uses. ``add_generation_prompt`` ends the prompt where the assistant's turn begins. Encode the result with
        ``add_bos=False``: a template that wants ``bos`` writes it. Raises ModelError if the template fails, refuses the
        conversation, or does not end within MAX_SECONDS and MAX_OUTPUT.
        """
        with _refusals("failed"), _deadline(MAX_SECONDS):
            parts = self._template.generate(
                messages=json.loads(json.dumps(messages)),  # plain data, not the caller's objects
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._tokens,
            )
            return "".join(_limited(parts, MAX_OUTPUT))


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text, for training. It does not change the prompt."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Generation])
        self.filters["tojson"] = _to_json
        self.globals = {
            "range": self.globals["range"],
            "dict": _dict,
            "namespace": _PlainNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            size = _bits(left) * right if isinstance(right, int) else 0
        else:
            size = max(_length(left) * _count(right), _length(right) * _count(left), _bits(left) + _bits(right))
        if size > _MAX_OPERAND:
            raise SecurityError(f"the result of {operator} would be too large")
        return super().call_binop(context, operator, left, right)


class _PlainNamespace(Namespace):
    """Jinja's ``namespace`` without underscored names, some of which give access to the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args
        Namespace.__init__(self)
        for name, value in dict(*values, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """``dict``, without the attributes of the class."""
    return dict(*args, **kwargs)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Plain JSON: Jinja's own filter escapes HTML markup."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _limited(parts: Iterator[str], limit: int) -> Iterator[str]:
    total = 0
    for part in parts:
        total += len(part)
        if total > limit:
            raise TemplateError(f"wrote more than {limit} characters")
        yield part


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Interrupt this thread's Python code after ``seconds``, by tracing it: nothing else stops a loop in a template."""
    end = time.monotonic() + seconds

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"took more than {seconds} seconds")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn any exception of a template into a ModelError of one line."""
    try:
        yield
    except Exception as e:
        reason = " ".join(str(e).split())
        raise ModelError(f"chat template {what}: {reason[:300] or type(e).__name__}") from e
