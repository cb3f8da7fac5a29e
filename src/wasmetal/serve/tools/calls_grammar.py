"""Grammars of answers that call tools, in llguidance's Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gguf import TokenType

from wasmetal.models import Tokenizer
from wasmetal.models.lm.grammar import JSON_OPTIONS
from wasmetal.serve.tools.formats import Format


def calls_grammar(
    tokenizer: Tokenizer,
    form: Format,
    tools: Mapping[str, Mapping[str, Any]],
    *,
    required: bool,
    parallel: bool,
    otherwise: Mapping[str, Any] | None = None,
) -> str:
    """An answer that calls one of these tools, or several if ``parallel``.

    ``tools``: the JSON schemas of their arguments by their names. Unless a call is ``required``, the answer may be any
    text, or begin with one: what follows the text that opens calls is calls. With ``otherwise``, a JSON schema, it is
    JSON that obeys this, or calls.
    """
    spell = _Speller(tokenizer)
    again = f"{spell(form.separator)} {spell(form.opening if form.repeats else '')}"
    rules = [
        f"calls: {spell(form.first)} call{f' ({again} call)*' if parallel else ''} {spell(form.last)}",
        f"call: {' | '.join(f'call{i}' for i in range(len(tools)))}",
    ]
    for index, (name, schema) in enumerate(tools.items()):
        begin, end = spell(form.before + name + form.between), spell(form.after)
        rules += [f"call{index}: {begin} arguments{index} {end}", f"arguments{index}: {_json(schema)}"]
    opened = "calls" if form.bare else f"{spell(form.opening)} calls"
    if required:
        return "\n".join([f"start: {opened}", *rules])
    if otherwise is not None:
        return "\n".join([f"start: {opened} | otherwise", f"otherwise: {_json(otherwise)}", *rules])
    return "\n".join([*_any_text(spell, form), *rules])


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": JSON_OPTIONS})


def _any_text(spell: _Speller, form: Format) -> list[str]:
    """Rules of any text, and of one that goes on with calls. Control tokens are no text for llguidance."""
    marker, others = spell(form.opening), spell.control_tokens(but=form.opening)
    is_control = marker.startswith("<[")

    def ended(text: str, lazily: str) -> str:
        """A text up to the opening; spelled with other tokens it opens calls as well."""
        return f"({lazily} | {text}? {marker})" if is_control else lazily

    rules = [r"TEXT: /(.|\n)*/", f"text_and_opening[lazy]: TEXT {json.dumps(form.opening)}"]
    rules += [f"control: {others}", "some: (TEXT? control)*"] if others else ["some:"]
    opened = f"some (TEXT | {ended('TEXT', 'text_and_opening')} calls)"
    if not form.bare:
        return [f"start: {opened}", *rules]
    other = r"([^{\s]|\s+[^{\s])(.|\n)*"  # what does not begin with a brace
    rules += [f"OTHER: /{other}/", f"other_and_opening[lazy]: /({other})?/ {json.dumps(form.opening)}"]
    start = rf"start: calls | {ended('OTHER', 'other_and_opening')} calls | OTHER | /\s*/"
    return [f"{start} | OTHER? control {opened}" if others else start, *rules]


class _Speller:
    """Writes texts as terminals: those that are control tokens of the model as these, and others as strings."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.ids_of_type(TokenType.CONTROL)
        self._control = {tokenizer.tokens[i]: i for i in ids}
        self._ends = tokenizer.end_of_generation
        self._split = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or r"(?!)")

    def __call__(self, text: str) -> str:
        parts, at = [], 0
        for found in self._split.finditer(text):
            parts += [json.dumps(text[at : found.start()]), f"<[{self._control[found.group()]}]>"]
            at = found.end()
        return " ".join(part for part in [*parts, json.dumps(text[at:])] if part != '""')

    def control_tokens(self, but: str) -> str:
        """All of them but one, and but those that end a text; empty if there are no others."""
        ids = sorted(i for text, i in self._control.items() if text != but and i not in self._ends)
        return f"<[{','.join(map(str, ids))}]>" if ids else ""
