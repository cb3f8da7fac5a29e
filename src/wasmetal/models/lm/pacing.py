"""How many rows a batch may have, so that others who use the model need not wait for long."""

from __future__ import annotations

import time

from wasmetal.models.lm.multi_step import MOST_STEPS
from wasmetal.models.lm.passes import ROWS

SHARED = 0.05
"""Device seconds that a batch may take while others use the model too: a slice, as for any other work of a guest."""
ALONE = 0.5
"""Device seconds that a batch may take otherwise. Limits on a guest's time are looked at between batches."""
RECENT = 1.0
"""Seconds for which somebody who has used the model counts as still using it."""
_STEP = ROWS[1]


class Pacing:
    """The rows of a model's next batch. Safe to use from several threads: what is kept are only estimates."""

    def __init__(self, most: int) -> None:
        """``most``: rows of a batch, a multiple of ROWS[1]."""
        self._most = most
        self._row_seconds: float | None = None
        self._step_seconds = SHARED
        self._user: object = None
        self._used = self._shared = -RECENT

    def rows(self, user: object) -> int:
        """Most rows of the next batch of ``user``, which is compared by identity: ROWS[1], or more if that is quick."""
        now = time.monotonic()
        if self._user not in (None, user) and now - self._used < RECENT:
            self._shared = now
        self._user, self._used = user, now
        if self._row_seconds is None:
            return _STEP
        longest = SHARED if now - self._shared < RECENT else ALONE
        steps = int(longest / (self._row_seconds * _STEP))
        return min(_STEP * max(steps, 1), self._most)

    def steps(self) -> int:
        """How many tokens of a sequence a submission may choose, one after another, so that others wait for SHARED."""
        return max(1, min(int(SHARED / self._step_seconds), MOST_STEPS))

    def stepped(self, steps: int, seconds: float) -> None:
        """A batch of so many steps has taken so long; 0 if the device does not tell."""
        self._step_seconds = seconds / steps or SHARED

    def took(self, rows: int, seconds: float) -> None:
        """A batch has taken so long. One with few rows says little about larger ones, and is not counted."""
        if rows >= _STEP:
            self._row_seconds = max(seconds, 1e-9) / rows
