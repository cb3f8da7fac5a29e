"""A Jinja template that turns conversations into prompts, in the environment that Hugging Face renders them in.

Jinja's sandbox keeps a template from the interpreter, but not from taking all time and memory:
:mod:`~wasmetal.models.lm.chat_template` has templates that are not trusted rendered in another process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from wasmetal.errors import ModelError

MAX_OUTPUT = 1 << 24
"""Most characters of a prompt."""


class JinjaTemplate:
    """A compiled template; ``bos`` and ``eos`` are the texts of those tokens. Raises ModelError if it is none."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self._tokens = {"bos_token": bos, "eos_token": eos}
        with _refusals("cannot be read"):
            self._template: Template = _Environment().from_string(source)

    def render(self, given: dict[str, Any]) -> str:
        """The prompt, of ``messages`` and other variables. Raises ModelError if it fails or passes MAX_OUTPUT."""
        with _refusals("failed"):
            parts = self._template.generate({**self._tokens, **given})
            return "".join(_limited(parts, MAX_OUTPUT))


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text, for training. It does not change the prompt."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
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
def _refusals(what: str) -> Iterator[None]:
    """Turn any exception of a template into a ModelError of one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split())
        raise ModelError(f"chat template {what}: {reason[:300] or type(e).__name__}") from e
