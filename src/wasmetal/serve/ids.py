"""Ids of what answers have."""

from __future__ import annotations

import secrets
import string

from wasmetal.serve.tools.formats import Format

_LETTERS = string.ascii_letters + string.digits


def new_id(kind: str) -> str:
    """Of a response, a conversation, or an item."""
    return f"{kind}_{secrets.token_hex(20)}"


def call_id(form: Format) -> str:
    """Of a call, as the templates of models that write this form want it."""
    letters = "".join(secrets.choice(_LETTERS) for _ in range(form.id_length))
    return letters if form.id_length == 9 else f"call_{letters}"
