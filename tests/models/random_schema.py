"""JSON schemas at random, for texts that obey them."""

from __future__ import annotations

import random
from typing import Any

KINDS = ("object", "array", "string", "pattern", "integer", "enum", "const", "boolean", "anyOf", "ref")


def schema(r: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random schema whose texts are short."""
    kind = r.choice(KINDS[2 if depth == 3 else 0 : None if depth == 0 else -1])
    if kind == "object":
        names = [f"k{i}" for i in range(r.randint(0, 3))]
        properties = {name: schema(r, min(depth + 1, 3)) for name in names}
        required = [name for name in names if r.random() < 0.7]
        return {"type": kind, "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        least = r.randint(0, 2)
        return {"type": kind, "items": schema(r, min(depth + 1, 3)), "minItems": least, "maxItems": least + 1}
    if kind == "string":
        return {"type": kind, "minLength": r.randint(0, 2), "maxLength": r.randint(2, 6)}
    if kind == "integer":
        least = r.randint(-50, 50)
        return {"type": kind, "minimum": least, "maximum": least + r.randint(0, 100)}
    if kind == "enum":
        return {"enum": r.sample(["red", "green", 1, None, True], r.randint(1, 3))}
    if kind == "pattern":
        return {"type": "string", "pattern": r.choice(["^[a-c]{1,3}$", "^(x|yz)$", "^[0-9]{2}-[A-Z]$"])}
    if kind == "const":
        return {"const": r.choice(['a "quoted" ü', 7, False, [1, 2], {"k": None}])}
    if kind == "ref":
        names = {"type": "object", "properties": {"name": {"$ref": "#/$defs/name"}}, "required": ["name"]}
        return names | {"additionalProperties": False, "$defs": {"name": schema(r, 2)}}
    if kind == "anyOf":
        return {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]}
    return {"type": kind}
