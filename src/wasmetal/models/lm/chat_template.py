"""Conversations to prompts, with the Jinja template in a model file, or one of a named family.

A template is a program. If its model is not trusted, a worker process compiles and renders it, within MAX_SECONDS and
MAX_MEMORY: nothing less stops one that compares deeply nested lists, or formats a number with a billion digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gguf import TokenType

from wasmetal.errors import ModelError
from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.lm.chat_families import FAMILIES, detect
from wasmetal.models.lm.jinja_template import MAX_OUTPUT, JinjaTemplate
from wasmetal.models.lm.tokenizer import Tokenizer
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
        self.with_tools: ChatTemplate | None = None
        """Another template, for conversations with tools."""
        self._template = {"source": source, "bos": bos, "eos": eos}
        self._compiled = JinjaTemplate(source, bos, eos) if trusted else None
        if not trusted:
            self._request(self._template)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for a conversation.

        Each message has a ``role`` ("system", "user", "assistant", …) and a ``content``, and whatever else the template
        uses, such as ``tool_calls``. ``add_generation_prompt`` ends the prompt where the assistant's turn begins.
        ``tools`` are those that the model may call, as JSON schemas: what ``transformers`` makes of functions.
        ``variables`` are others that the template refers to, such as ``documents`` or ``enable_thinking``. Encode the
        result with ``add_bos=False``: a template that wants ``bos`` writes it. Raises ModelError if any of these is not
        plain data, or if the template fails, refuses the conversation or passes a limit.
        """
        if tools and self.with_tools:
            return self.with_tools.render(messages, add_generation_prompt, tools=tools, variables=variables)
        given = {"documents": None, **(variables or {}), "messages": messages, "tools": tools}
        given["add_generation_prompt"] = bool(add_generation_prompt)
        try:
            plain: dict[str, Any] = json.loads(json.dumps(given))  # not the caller's objects
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"the messages are not plain data: {error}") from error
        if self._compiled:
            return self._compiled.render(plain)
        return self._request(self._template | {"given": plain})

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


def chat_template(file: ModelFile, tokenizer: Tokenizer, name: str | None, trusted: bool) -> ChatTemplate | None:
    """A model's template: that of the family ``name``, or else the file's own, or else that of the family whose control
    tokens the vocabulary has; None if there is no such family, or several.

    ``trusted``: as for ChatTemplate, of the file's own. Raises ModelError if it is no template, or the name unknown.
    """
    if name is not None and name not in FAMILIES:
        raise ModelError(f"there is no chat template {name!r}; known: {', '.join(FAMILIES)}")
    bos, eos = ("" if i is None else tokenizer.tokens[i] for i in (tokenizer.bos, tokenizer.eos))
    source = file.get("tokenizer.chat_template", str, None)
    if name is None and source is not None:
        template = ChatTemplate(source, bos=bos, eos=eos, trusted=trusted)
        if source := file.get("tokenizer.chat_template.tool_use", str, None):
            template.with_tools = ChatTemplate(source, bos=bos, eos=eos, trusted=trusted)
        return template
    name = name or detect(set(tokenizer.of_type(TokenType.CONTROL)))
    return ChatTemplate(FAMILIES[name].template, bos=bos, eos=eos, trusted=True) if name else None
