"""How many rows a batch may have, so that others who use the model need not wait for long."""

from __future__ import annotations

import time

from wasmetal.models.lm.multi_step import MOST_STEPS
from wasmetal.models.lm.passes import ROWS

SHARED = 0.05
"""Device seconds that a batch may take while others use the model too: a slice, as for any other work of a guest."""
ALONE = 0.5
"""Device seconds that a batch may take otherwise. Limits on a guest's time are looked at between batches."""
TOGETHER = 0.02
"""Device seconds that prompts of several callers may take in one batch. A GPU takes hardly longer for it than for the
rows of one; but each waits for all."""
RECENT = 1.0
"""Seconds for which somebody who has used the model counts as still using it, so that batches are short."""
_TURN, _TURN_OF_MANY = 0.1, 0.2
"""Seconds for which a guest has tokens chosen before it gets them, so that it can show their text. While it does, it is
in no batch: less of the time if its turns are long."""
_MOMENT = 0.1
"""Seconds within which somebody who has used the model is likely to come back."""
_STEP = ROWS[1]


class Pacing:
    """The rows of a model's next batch. Safe to use from several threads: what is kept are only estimates."""

    def __init__(self, most: int) -> None:
        """``most``: rows of a batch, a multiple of ROWS[1]."""
        self._most = most
        self._row_seconds: float | None = None
        self._step_seconds = SHARED
        self._step_rows = 0
        self._user: object = None
        self._used = self._shared = -RECENT
        self._seen: dict[int, float] = {}
        """When the users were here, by their identities."""

    def rows(self, user: object) -> int:
        """Most rows of the next batch of ``user``, which is compared by identity: ROWS[1], or more if that is quick."""
        self.seen(user)
        now = time.monotonic()
        if self._user not in (None, user) and now - self._used < RECENT:
            self._shared = now
        self._user, self._used = user, now
        if self._row_seconds is None:
            return _STEP
        longest = SHARED if now - self._shared < RECENT else ALONE
        steps = int(longest / (self._row_seconds * _STEP))
        return min(_STEP * max(steps, 1), self._most)

    def together(self) -> int:
        """Most rows of a batch with prompts of several callers; 0 if it is not known how long they take."""
        return 0 if self._row_seconds is None else min(int(TOGETHER / self._row_seconds), self._most)

    def seen(self, user: object) -> None:
        """Somebody has used the model, or is about to."""
        self._seen[id(user)] = time.monotonic()

    def users(self) -> int:
        """How many have used the model a moment ago."""
        now = time.monotonic()
        # Taken at once, as others may add to it; whoever does so just now may be missing next time.
        self._seen = {user: when for user, when in list(self._seen.items()) if now - when < _MOMENT}
        return len(self._seen)

    def turn(self) -> float:
        """For how many seconds a guest should have tokens chosen at a time."""
        return _TURN_OF_MANY if self.users() > 1 else _TURN

    def steps(self) -> int:
        """How many tokens of a sequence a submission may choose, one after another, so that others wait for SHARED."""
        return max(1, min(int(SHARED / self._step_seconds), MOST_STEPS))

    def stepped(self, steps: int, seconds: float, rows: int = 1) -> None:
        """A batch of so many steps, each of so many rows, has taken so long; 0 if the device does not tell."""
        self._step_seconds, self._step_rows = seconds / steps or SHARED, rows if seconds else 0

    def expected(self, steps: int, rows: int) -> float:
        """How many seconds so many steps will take; 0 if that is not known, as the last ones had more or fewer rows."""
        return steps * self._step_seconds if rows == self._step_rows else 0.0

    def took(self, rows: int, seconds: float) -> None:
        """A batch has taken so long. One with few rows says little about larger ones, and is not counted."""
        if rows >= _STEP:
            self._row_seconds = max(seconds, 1e-9) / rows
