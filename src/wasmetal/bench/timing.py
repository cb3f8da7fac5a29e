"""Timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles


def median_seconds(action: Callable[[], object], repeats: int, budget: float = 1.0) -> float:
    """Median time of up to ``repeats`` runs (at least three), as many as fit in ``budget`` seconds, after a warm-up."""
    action()
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < budget):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return median(times)


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of a run, over many runs."""

    median: float
    p95: float
    """95 % of the runs took no longer."""


def spread(action: Callable[[], object], repeats: int) -> Spread:
    """The times of ``repeats`` runs (two or more), after a warm-up."""
    action()
    times: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return Spread(median(times), quantiles(times, n=20, method="inclusive")[-1])
