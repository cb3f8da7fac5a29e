"""Conversations to prompts, with the Jinja template in a model file.

A template is a program. If its model is not trusted, a worker process compiles and renders it, within MAX_SECONDS and
MAX_MEMORY: nothing less stops one that compares deeply nested lists, or formats a number with a billion digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wasmetal.errors import ModelError
from wasmetal.models.lm.jinja_template import MAX_OUTPUT, JinjaTemplate
from wasmetal.worker import WorkerPool

MAX_SOURCE = 1 << 18
"""Most characters of a template; published ones have up to about 20,000."""
MAX_SECONDS = 5.0
"""Longest time that compiling a template, or rendering it once, may take if it is not trusted."""
MAX_MEMORY = 512 << 20
"""Most bytes that the same may take."""
_pool = WorkerPool("wasmetal.models.lm.template_worker", ModelError)


class ChatTemplate:
    """A template that has been found to compile.

    ``bos`` and ``eos`` are the texts of those tokens, which templates refer to. ``trusted``: render it in this process,
    without limits on time and memory. Raises ModelError if the source is not a template.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "", trusted: bool = False):
        if len(source) > MAX_SOURCE:
            raise ModelError(f"chat template of {len(source)} characters; at most {MAX_SOURCE} are supported")
        self.source = source
        self._template = {"source": source, "bos": bos, "eos": eos}
        self._compiled = JinjaTemplate(source, bos, eos) if trusted else None
        if not trusted:
            self._request(self._template)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation.

        Each message has a ``role`` ("system", "user", "assistant") and a ``content``, and whatever else the template
        uses. ``add_generation_prompt`` ends the prompt where the assistant's turn begins. Encode the result with
        ``add_bos=False``: a template that wants ``bos`` writes it. Raises ModelError if the messages are not plain
        data, or if the template fails, refuses the conversation or passes a limit.
        """
        try:
            plain = json.loads(json.dumps(messages))  # not the caller's objects
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"the messages are not plain data: {error}") from error
        if self._compiled:
            return self._compiled.render(plain, add_generation_prompt)
        return self._request(self._template | {"messages": plain, "add_generation_prompt": add_generation_prompt})

    def _request(self, request: dict[str, Any]) -> str:
        _, prompt = _pool.request(
            "the chat template",
            {},
            json.dumps(request).encode(),
            seconds=MAX_SECONDS,
            memory=MAX_MEMORY,
            most=4 * MAX_OUTPUT,
        )
        try:
            return prompt.decode(errors="surrogatepass")
        except UnicodeDecodeError as error:
            raise ModelError("the chat template failed: its process did not answer with a text") from error
