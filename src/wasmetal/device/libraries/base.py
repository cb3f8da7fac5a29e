"""GEMMs that a vendor's library computes instead of the catalog's kernels.

Operations do not know of this: a dispatch that computes a large GEMM is recognised when it is recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from wasmetal.device.backend import A, AnyBackend, C, Range
from wasmetal.device.base import Device
from wasmetal.device.gemm import Gemm, Kinds, gemm_of
from wasmetal.device.gemm_trials import every_layout
from wasmetal.device.trial import find_problem
from wasmetal.device.trial_results import TrialResults
from wasmetal.kernels.catalog import Kernel

LEAST = 512**3
"""Multiplications from which a GEMM counts as large. A guess: no crossover has been measured."""
LEAST_SIDE = 64
"""The least m, n and k of a large GEMM; below, it is close to a matrix-vector product."""
ALIGNMENT = 16
"""Alignment in bytes of matrices and rows. Libraries require whole elements, and recommend this."""


@dataclass(frozen=True, slots=True)
class LibraryTrials:
    """The trials of a library, one for each combination of element types."""

    results: TrialResults
    open_device: Callable[[], Device]
    """Opens a device for a trial: one that uses the library without trials."""


class GemmLibrary(ABC, Generic[A, C]):
    """Selects the dispatches that a library computes: large GEMMs of types for which it has passed a trial."""

    name: str
    """The library's name in the features of the device."""
    kinds: Collection[Kinds]
    """The combinations of element types that the library supports."""

    def __init__(self, trials: LibraryTrials | None = None) -> None:
        """Without ``trials``, which is for the device that runs them, the library also computes smaller GEMMs."""
        self._trials = trials
        self._least = LEAST if trials else 0
        self._tried: dict[Kinds, str | None] = {}

    @property
    def features(self) -> tuple[str, ...]:
        """What the library is used for, as features of the device."""
        right = [_named(kinds) for kinds, problem in self._tried.items() if problem is None]
        wrong = [f"no {self.name} for {_named(kinds)} ({problem})" for kinds, problem in self._tried.items() if problem]
        used = f"large GEMMs by {self.name} ({', '.join(right) or 'tried at first use'})"
        return (used, *wrong) if right or not wrong else tuple(wrong)

    def find(self, backend: AnyBackend, kernel: Kernel, params: bytes, ranges: Sequence[Range[A]]) -> C | None:
        """The library's equivalent of a dispatch, or None if the kernel runs instead.

        Updates ``backend.info.features`` if this tries the library. Raises DeviceError if the library fails.
        """
        gemm = gemm_of(kernel, params)
        if gemm is None or gemm.kinds not in self.kinds or gemm.size < self._least or gemm.least_side < LEAST_SIDE:
            return None
        if not all(matrix.is_regular(ALIGNMENT) for matrix in gemm.matrices) or not self.takes(gemm, ranges):
            return None
        if gemm.kinds not in self._tried:
            others = tuple(name for name in backend.info.features if name not in self.features)
            self._tried[gemm.kinds] = self._try(gemm.kinds)
            backend.info = replace(backend.info, features=others + self.features)
        return self.make(gemm, ranges) if self._tried[gemm.kinds] is None else None

    def _try(self, kinds: Kinds) -> str | None:
        """Why the library cannot be used for GEMMs of these types; None if it can."""
        trials = self._trials
        if trials is None:
            return None

        def run() -> str | None:
            return find_problem(trials.open_device(), every_layout(kinds))

        return self.missing() or trials.results.problem(f"{self.name} {' '.join(kinds)}", run)

    def missing(self) -> str | None:
        """Why the library cannot be tried: it is not installed, or does not support the device. None if it can."""
        return None

    @abstractmethod
    def takes(self, gemm: Gemm, ranges: Sequence[Range[A]]) -> bool:
        """Whether the library can compute a GEMM of these sizes on matrices in these bindings."""

    @abstractmethod
    def make(self, gemm: Gemm, ranges: Sequence[Range[A]]) -> C:
        """The GEMM in the form that the backend's recordings run. Raises DeviceError if the library fails."""


def _named(kinds: Kinds) -> str:
    return f"{kinds[0]} to {kinds[2]}"
