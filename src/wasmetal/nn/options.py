"""Options in JSON, as guests and grants give them."""

from __future__ import annotations

import json
from typing import Any

from wasmetal.nn.errors import NnErrno, NnRefusal, invalid

MAX_JSON = 1 << 18
"""Bytes of options."""


def parse(data: bytes) -> dict[str, Any]:
    """The options in a JSON object; none if there are no bytes. Raises NnRefusal."""
    if len(data) > MAX_JSON:
        raise NnRefusal(NnErrno.TOO_LARGE, f"{len(data)} bytes of options; at most {MAX_JSON} are taken")
    text = data.rstrip(b"\0 \t\r\n")
    if not text:
        return {}
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NnRefusal(NnErrno.INVALID_ENCODING, f"the options are not JSON: {error}") from None
    if not isinstance(options, dict):
        raise invalid("the options are JSON, but not an object")
    return options
