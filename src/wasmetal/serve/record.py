"""What is known of one request, for logs and traces. No text of it, unless that was asked for."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_MOST_PATH = 200


@dataclass(slots=True)
class Record:
    """A request. Moments are in seconds after it came."""

    id: str
    method: str
    path: str
    """As it was asked for."""
    route: str
    """The endpoint: the path, or "other"."""
    trace: dict[str, str] = field(default_factory=dict)
    """The headers that say which trace it belongs to."""
    came: float = field(default_factory=time.monotonic)
    came_ns: int = field(default_factory=time.time_ns)
    """When it came: of a clock that never jumps, and since 1970."""
    key: str = ""
    """The name of its key."""
    model: str = ""
    status: int = 0
    finish: str = ""
    """How the last completion ended: "stop", "length", "cancelled" (the client went away) or "error"."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    device_seconds: float = 0.0
    started: float | None = None
    """When the first completion had a place to run in,"""
    first: float | None = None
    """when the first token came,"""
    ended: float = 0.0
    """and when the answer had been sent."""
    prompt: str | None = None
    """The prompt's text, if prompts are logged."""

    def now(self) -> float:
        """This moment."""
        return time.monotonic() - self.came

    def as_dict(self) -> dict[str, Any]:
        """What there is to say of it, for JSON."""
        said = {
            "id": self.id,
            "key": self.key,
            "method": self.method,
            "path": self.path[:_MOST_PATH],
            "status": self.status,
            "seconds": round(self.ended, 4),
        }
        if self.model:
            said["model"] = self.model
        if self.started is not None:
            said |= {
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
                "queue_seconds": round(self.started, 4),
                "first_token_seconds": None if self.first is None else round(self.first, 4),
                "device_seconds": round(self.device_seconds, 4),
                "finish": self.finish,
            }
        if self.prompt is not None:
            said["prompt"] = self.prompt
        return said


def request_id(wanted: str | None) -> str:
    """The id that a client gave its request, if it is one that can be passed on, or a new one."""
    return wanted if wanted and _ID.fullmatch(wanted) else f"req_{secrets.token_hex(12)}"
