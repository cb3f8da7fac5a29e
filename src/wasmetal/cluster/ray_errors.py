"""Ray's errors in one line."""

from __future__ import annotations

from ray.exceptions import RayError

from wasmetal.errors import printable


def line(error: BaseException) -> str:
    """What an error says, in a line: of Ray's the last, since the stack of another process comes before it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[-1] if isinstance(error, RayError) else lines[0])
