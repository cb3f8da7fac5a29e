"""How long something takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median


def median_seconds(action: Callable[[], object], repeats: int, budget: float = 1.0) -> float:
    """Median time of up to ``repeats`` runs (at least three), as many as fit in ``budget`` seconds, after a warm-up."""
    action()
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < budget):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return median(times)
