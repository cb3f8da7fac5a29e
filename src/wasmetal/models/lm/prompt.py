"""From a conversation to the tokens of a prompt."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from wasmetal.errors import ModelError
from wasmetal.models.lm.chat_template import ChatTemplate
from wasmetal.models.lm.tokenizer import Tokenizer


def prompt_tokens(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The tokens of a conversation, up to where the assistant's next turn begins.

    Each message has a ``role``, and strings under whatever other keys the template uses, or plain data, such as
    ``tool_calls``; ``tools`` are as for :meth:`ChatTemplate.render`. Only the template's own control tokens become
    those: what a string spells out, such as ``<|im_end|>``, stays text. A string without such spellings is tokenized
    together with what surrounds it, as models are trained. Raises ModelError if the model has no template, or the
    template refuses the conversation.
    """
    if template is None:
        raise ModelError("the model has no chat template; complete a text instead")
    prefix = f"wm{secrets.token_hex(8)}"  # random, so that no message can hold it
    texts: list[str] = []

    def hide(text: str, shown: str) -> str:
        if not _spells_token(tokenizer, text):
            return text
        texts.append(shown)
        return f"{prefix}{len(texts) - 1:08x}"

    def hide_all(data: Any) -> Any:
        """In data, which templates write as JSON."""
        if isinstance(data, str):
            return hide(data, json.dumps(data, ensure_ascii=False)[1:-1])
        if isinstance(data, Mapping):
            return {hide_all(key): hide_all(value) for key, value in data.items()}
        return list(map(hide_all, data)) if isinstance(data, Sequence) else data

    def hidden(key: str, value: Any) -> Any:
        return value if key == "role" else hide(value, value) if isinstance(value, str) else hide_all(value)

    try:
        safe = [{key: hidden(key, value) for key, value in each.items()} for each in messages]
        safe_tools = hide_all(tools) if tools else None
    except RecursionError:
        raise ModelError("the messages are nested too deeply") from None
    text = template.render(safe, tools=safe_tools)
    pieces = re.split(f"{prefix}([0-9a-f]{{8}})", text)
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            ids += tokenizer.encode(texts[int(piece, 16)], parse_special=False, add_bos=False)
        elif piece:
            ids += tokenizer.encode(piece, parse_special=True, add_bos=False)
    return ids


def _spells_token(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text would give other tokens if control tokens that it spells out were taken for those."""
    plain, special = (tokenizer.encode(text, parse_special=parse, add_bos=False) for parse in (False, True))
    return plain != special
