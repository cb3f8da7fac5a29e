"""Choosing the next token from the largest logits, as the sampler of the guests' library does (``sdk/lib/sampler.c``).

The filters are those of Hugging Face transformers, in the same order: temperature, top-k, top-p (A. Holtzman et al.,
2019), min-p (M. Nguyen et al., 2024).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import Submission
from wasmetal.models.lm.filters import Filters
from wasmetal.models.lm.heads import TopLogits
from wasmetal.models.lm.multi_step import MOST_STEPS, Draws

if TYPE_CHECKING:
    from wasmetal.models.lm.session import Session

_AT_A_TIME = 4 * MOST_STEPS
"""Tokens that the device is asked for at a time; it has a place in the KV cache for all of them beforehand."""
_MASK = 2**64 - 1
_INCREMENT, _MIX, _MIX_AGAIN = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass
class Sampler(Filters):
    """How tokens are chosen. Raises ModelError if a number is out of range."""

    seed: int = 0
    """State of the random number generator, 64 bits; :meth:`choose` advances it."""

    def choose(self, top: TopLogits) -> int:
        """The next token, of at least ``candidates`` largest logits. 0 if all logits are -inf or NaN."""
        if self.temperature > 0 and math.isfinite(float(top.values[0])):
            random = float(_uniforms(self.seed, 1)[0])
            self.advance(1)
            return pick(self, top, random)
        return pick(self, top, 0.0)

    def draws(self, count: int, stops: frozenset[int] = frozenset(), until: float = math.inf) -> Draws:
        """How the device chooses the next ``count`` tokens. To be followed by :meth:`advance`."""
        randoms = _uniforms(self.seed, count) if self.temperature > 0 else np.zeros(count)
        return Draws(self, randoms, stops, until)

    def advance(self, count: int) -> None:
        """Leave the generator as it is after ``count`` tokens."""
        if self.temperature > 0:
            self.seed = (self.seed + count * int(_INCREMENT)) & _MASK


def pick(how: Filters, top: TopLogits, random: float) -> int:
    """The token that a random number from 0 to 1 chooses, of at least as many largest logits as ``how`` keeps."""
    ids: list[int] = top.ids.tolist()
    values: list[float] = top.values.tolist()
    if how.temperature <= 0 or not math.isfinite(values[0]):
        return max(ids[0], 0)
    weights = [math.exp((value - values[0]) / how.temperature) for value in values[: how.top_k]]
    enough = how.top_p * sum(weights) if how.top_p < 1 else math.inf
    kept, mass = 0, 0.0
    for weight in weights:
        if kept and (mass >= enough or weight < how.min_p):
            break
        mass += weight
        kept += 1
    left, chosen = random * mass, ids[0]
    for token, weight in zip(ids[:kept], weights, strict=False):
        if left < 0 or weight == 0:
            break
        chosen = token
        left -= weight
    return chosen


def _uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """SplitMix64 (G. L. Steele et al., 2014); the upper 53 bits make numbers in [0, 1)."""
    z = np.arange(1, 1 + count, dtype=np.uint64) * _INCREMENT + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * _MIX
    z = (z ^ (z >> np.uint64(27))) * _MIX_AGAIN
    return np.asarray(((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53, np.float64)


def generate(
    session: Session,
    tokens: Sequence[int],
    sampler: Sampler,
    most: int,
    stops: Collection[int],
    chosen: list[int],
    seconds: float = math.inf,
) -> Generator[Submission | None]:
    """Append tokens and then choose and append up to ``most`` more, in steps as those of :meth:`Session.steps`.

    Each token is added to ``chosen``. The last one is not appended: it is one of ``stops``, or the ``most``-th, or the
    context is full, or ``seconds`` have passed. Raises what :meth:`Session.forward` does; the tokens that were chosen
    before are then appended.
    """
    stops = frozenset(stops)
    context, end = session.model.context_length, time.monotonic() + seconds
    if len(tokens) != 1:
        top = TopLogits(sampler.candidates)
        yield from session.steps(tokens, top)
        tokens = [sampler.choose(top)]
        chosen += tokens
        if tokens[0] in stops or session.length == context:
            return
    while len(chosen) < most:
        begin = session.length
        draws = sampler.draws(max(min(most - len(chosen), _AT_A_TIME, context - begin), 1), stops, end)
        yield from session.choose(tokens[0], draws)
        ended = next((i for i, token in enumerate(draws.tokens, 1) if token in stops), None)
        some = draws.tokens[:ended]
        sampler.advance(len(some))
        if ended is not None:
            session.truncate(begin + ended)
        chosen += some
        tokens = some[-1:]
        if ended or session.length == context or time.monotonic() >= end:
            return
