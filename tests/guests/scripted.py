"""A stand-in for ``wasmetal.Model`` that gives the replies that a test scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from wasmetal.counters import Counters
from wasmetal.device.cpu.device import CpuDevice
from wasmetal.models import TopLogits
from wasmetal.models.lm.multi_step import Draws
from wasmetal.models.lm.sampling import pick
from wasmetal.models.loaded import Capability
from wasmetal.models.packed import Packed
from wasmetal.ops import Tensor

END = 256
BEGIN = 257
VOCABULARY = 258
SPECIAL = {"<|im_end|>": END, "^": BEGIN}


class ScriptedModel:
    """Tokens are bytes; END ends a turn, BEGIN begins a prompt. Each prompt gets the next of ``replies``."""

    def __init__(self, *replies: bytes | list[int], context: int = 1000, template: bool = True) -> None:
        self.device = CpuDevice()
        self.capabilities = frozenset({Capability.LANGUAGE})
        self.replies = [list(reply) for reply in replies]
        self.context_length, self.vocab_size = context, VOCABULARY
        self.tokenizer = self
        self.end_of_generation = frozenset([END])
        self.cache = SimpleNamespace(position_bytes=1, bytes_as=lambda dtype: 1)
        self.chat_template = self if template else None
        self.conversations: list[list[dict[str, str]]] = []
        self.forwards: list[list[int]] = []
        self.sessions = 0
        self.turn_seconds = 0.1

    def pieces(self) -> Packed[bytes]:
        return Packed([*(bytes([i]) for i in range(256)), *map(str.encode, SPECIAL)], bytes)

    def encode(self, text: str, *, parse_special: bool, add_bos: bool | None) -> list[int]:
        if not parse_special:
            return list(text.encode())
        parts = re.split(r"(\^|<\|im_end\|>)", text)
        return [token for part in parts for token in ([SPECIAL[part]] if part in SPECIAL else part.encode())]

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        self.conversations.append(list(messages))
        assert add_generation_prompt
        return "^" + "".join(f"{each['role'][0]}:{each['content']}|" for each in messages) + "a:"

    def join(self, charge: Callable[[int], None], prefixes: str | None = None) -> None:
        pass

    def leave(self, holder: None) -> None:
        pass

    def reclaim(self) -> None:
        pass

    def session(self, holder: None) -> ScriptedSession:
        self.sessions += 1
        return ScriptedSession(self)


class ScriptedSession:
    """What it says depends on its length alone: tokens that were run and dropped again leave no trace."""

    def __init__(self, model: ScriptedModel) -> None:
        self.model = model
        self.length = 0
        self.counters = Counters()
        self._prompt = 0
        self._reply: list[int] = []

    def choose(self, token: int, draws: Draws) -> Generator[None]:
        """Nothing is run after an END."""
        for random in draws.randoms:
            if token != END:
                top = TopLogits(draws.filters.top_k)
                yield from self.steps([token], [top])
                token = pick(draws.filters, top, random)
            draws.tokens.append(token)

    def steps(self, tokens: Sequence[int], logits: Any) -> Generator[None]:
        yield
        model = self.model
        model.forwards.append(list(tokens))
        self.length += len(tokens)
        assert self.length <= model.context_length
        rows = [logits] if isinstance(logits, Tensor) else logits
        # A draft has several rows, and a model that makes drafts runs its own last one with the token that followed.
        if not self._reply or (len(rows) == 1 and len(tokens) > 2):
            self._prompt = self.length
            self._reply = [*(model.replies.pop(0) if model.replies else []), END]
        for row, last in enumerate(range(self.length - len(rows), self.length)):
            place = last + 1 - self._prompt
            values = np.full(model.vocab_size, -10, np.float32)
            values[self._reply[place] if place < len(self._reply) else END] = 10
            if isinstance(logits, Tensor):
                logits.numpy()[:] = values
            else:
                top = logits[row]
                top.ids[:] = np.argsort(-values, kind="stable")[: len(top.ids)]
                top.values[:] = values[top.ids]

    def truncate(self, length: int) -> None:
        assert length <= self.length
        self.length = length

    def close(self) -> None:
        pass


def stats(stderr: bytes) -> dict[str, float]:
    """What ``--stats`` wrote."""
    result: dict[str, float] = json.loads(stderr.splitlines()[-1])
    return result
