"""Which of the likeliest tokens may come next, and how likely each is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wasmetal.errors import ModelError
from wasmetal.models.lm.heads import MOST_TOP


@dataclass
class Filters:
    """Settings of a sampler. Raises ModelError if a number is out of range."""

    temperature: float = 0.0
    """0: always the likeliest token."""
    top_k: int = 40
    """Keep the k likeliest, 1 to 64."""
    top_p: float = 1.0
    """Of those, keep the likeliest that together have this much probability; 1: all."""
    min_p: float = 0.0
    """Of those, keep what is at least this likely, relative to the likeliest; 0: all."""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MOST_TOP:
            raise ModelError(f"a top-k of {self.top_k}; the device finds 1 to {MOST_TOP}")
        for name in ("temperature", "top_p", "min_p"):
            if not 0 <= getattr(self, name) < math.inf:  # NaN is neither
                raise ModelError(f"{name} is {getattr(self, name)}; it must be finite and not negative")

    @property
    def candidates(self) -> int:
        """How many of the largest logits a token is chosen from."""
        return self.top_k if self.temperature > 0 else 1
