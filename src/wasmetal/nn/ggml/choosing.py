"""How the next token is chosen: with penalties and a constraint, from all logits; without, from the largest."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import ModelError
from wasmetal.models.lm.grammar import Grammar
from wasmetal.models.lm.heads import MOST_TOP, TopLogits
from wasmetal.models.lm.model import Model
from wasmetal.models.lm.sampling import Sampler
from wasmetal.models.lm.shared import Shared
from wasmetal.nn.backend import Services
from wasmetal.nn.errors import invalid
from wasmetal.nn.ggml.options import GgmlOptions
from wasmetal.ops import ALIGNMENT, DType, Tensor

WINDOW = 64
"""Of the tokens so far, penalties count the last: llama.cpp's ``penalty_last_n``."""


class AllLogits:
    """Room for the logits of the whole vocabulary, which host and device share."""

    def __init__(self, model: Model, charge: Any) -> None:
        """Charges its bytes. Raises what ``charge`` does, and OutOfDeviceMemoryError."""
        self._charge, self._nbytes = charge, -(-4 * model.vocab_size // ALIGNMENT) * ALIGNMENT
        charge(self._nbytes)
        try:
            shared = self._shared = Shared(model.device, DType.F32, model.vocab_size)
        except BaseException:
            charge(-self._nbytes)
            raise
        self.tensor, self.values = shared.tensor, shared.values
        """f32 [vocab_size], for the device and for the host."""

    def close(self) -> None:
        """Release it."""
        self._shared.close()
        self._charge(-self._nbytes)


class Chooser:
    """Chooses the tokens of one answer."""

    def __init__(
        self, options: GgmlOptions, model: Model, services: Services, constraint: Grammar | None = None
    ) -> None:
        """Raises NnRefusal if an option is out of range."""
        self._options = options
        self._constraint = constraint
        seed = secrets.randbits(64) if options.random else options.seed % 2**64
        k = min(options.top_k, MOST_TOP) if options.top_k > 0 else MOST_TOP
        if options.repeat_penalty <= 0:
            raise invalid(f"option 'repeat-penalty' is {options.repeat_penalty}; it must be more than 0")
        try:
            self._sampler = Sampler(max(options.temp, 0.0), k, options.top_p, options.min_p, seed)
        except ModelError as error:
            raise invalid(str(error)) from None
        self._top = TopLogits(self._sampler.candidates)
        self._all = AllLogits(model, services.charge) if options.penalizes or constraint else None

    @property
    def wanted(self) -> Tensor | TopLogits:
        """What the device is to give of the logits."""
        return self._all.tensor if self._all else self._top

    def choose(self, tokens: Sequence[int]) -> int | None:
        """The next token, once ``wanted`` is there; None if none may come. ``tokens``: those so far."""
        if self._all:
            values = self._all.values.copy()
            self._penalize(values, tokens[-WINDOW:])
            if self._constraint:
                values[~self._constraint.allowed()] = -np.inf
            if not (values > -np.inf).any():
                return None
            _find(values, self._top)
        token = self._sampler.choose(self._top)
        if self._constraint:
            self._constraint.take(token)
        return token

    def _penalize(self, values: NDArray[np.float32], recent: Sequence[int]) -> None:
        """llama.cpp's penalties (``llama_sampler_penalties``)."""
        counts = Counter(recent)
        ids, times = list(counts.keys()), np.array(list(counts.values()), np.float32)
        o, logits = self._options, values[ids]
        logits = np.where(logits > 0, logits / np.float32(o.repeat_penalty), logits * np.float32(o.repeat_penalty))
        values[ids] = logits - times * np.float32(o.frequency_penalty) - np.float32(o.presence_penalty)

    def close(self) -> None:
        """Release what was taken. Idempotent."""
        if self._all:
            self._all.close()
            self._all = None


def _find(values: NDArray[np.float32], top: TopLogits) -> None:
    """The largest of all logits, as the device would find them."""
    k = min(top.k, values.size)
    largest = np.argpartition(-values, k - 1)[:k]
    ids = largest[np.lexsort((largest, -values[largest]))]
    top.found[:k, 0], top.found[:k, 1] = ids, values[ids].view(np.int32)
    top.found[k:, 0], top.found[k:, 1] = -1, np.float32(-np.inf).view(np.int32)
