"""Options of a language model, by the names that WasmEdge's GGML backend gave them."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from wasmetal.nn.backend import Config
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid

log = logging.getLogger("wasmetal.nn")

PATHS = frozenset(
    {"image", "mmproj", "model-vocoder", "tts-output-file", "tts-speaker-file", "lora", "video", "audio", "log-file"}
)
"""Options that name files of the host; guests have none."""
IGNORED = {"n-gpu-layers": int, "main-gpu": int, "batch-size": int, "ubatch-size": int, "threads": int}
"""Options that are known and do nothing here, with their types: the host has chosen the device."""
_RANDOM = (-1, 2**32 - 1)
"""Seeds that ask for any other one."""


@dataclass(frozen=True, slots=True)
class GgmlOptions:
    """The options in effect. Names have ``-`` where these have ``_``."""

    n_predict: int = -1
    """The most tokens of an answer; negative: as many as the context has room for."""
    ctx_size: int = 0
    """Tokens of context, up to the model's own; 0: the model's own."""
    temp: float = 0.8
    """Temperature; 0: always the likeliest token."""
    top_k: int = 40
    """Keep the k likeliest, up to 64; 0 or less: 64."""
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1
    """-1: at random."""
    reverse_prompt: str = ""
    """The text that ends an answer, and belongs to it."""
    stream_stdout: bool = False
    """Also write the answer to standard output, as it is made."""
    embedding: bool = False
    grammar: str = ""
    """GBNF, or Lark."""
    json_schema: str = ""

    def updated(self, config: Config) -> Self:
        """With what a guest or a grant gives. Raises NnRefusal: a wrong type, or a file of the host."""
        if named := sorted(PATHS & config.keys()):
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, f"option {named[0]!r} names a file of the host")
        for name in IGNORED.keys() & config.keys():
            _typed(name, config[name], IGNORED[name])
            log.info("option %r is ignored: the host has chosen the device and its threads", name)
        given: dict[str, Any] = {}
        for field in fields(self):
            name = field.name.replace("_", "-")
            if name in config:
                given[field.name] = _typed(name, config[name], type(getattr(self, field.name)))
        return replace(self, **given)

    @property
    def random(self) -> bool:
        """Whether the seed is to be made up."""
        return self.seed in _RANDOM

    @property
    def penalizes(self) -> bool:
        """Whether tokens that were said before become less likely."""
        return (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


def _typed(name: str, value: Any, kind: type) -> Any:
    """The value of an option as this type."""
    if name == "json-schema" and isinstance(value, dict):
        return json.dumps(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    if type(value) is not kind:
        raise invalid(
            f"option {name!r} is {str(value)[:40]!r}, of type {type(value).__name__}; {kind.__name__} is expected"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise invalid(f"option {name!r} is {value}")
    return value
