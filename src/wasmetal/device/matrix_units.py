"""GEMMs and attention on a GPU's matrix units: kernels that round operands to float16, each tried before it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from wasmetal.device.attention_trials import attention_of_many_rows
from wasmetal.device.backend import AnyBackend
from wasmetal.device.gemm import variant
from wasmetal.device.gemm_trials import rounded_gemms
from wasmetal.device.matrix_attention import MATRIX_ATTENTION, matrix_attention
from wasmetal.device.opened import OpenDevice
from wasmetal.device.trial import Trial, find_problem
from wasmetal.device.trial_results import TrialResults
from wasmetal.kernels.catalog import COOPMAT_TILES, Kernel

SUBGROUP = 32
"""Threads of a subgroup, as the kernels have it (``fragments.slang``)."""
_DEPTH = 32
"""Elements of a tile along k."""
_MANY = 256
"""Groups that occupy a large GPU; below, smaller tiles make more of them. Of an H200, which has 132 multiprocessors."""
_VECTOR = 4
"""Floats of the least unit that the kernels load and store."""


B = TypeVar("B", bound=AnyBackend)


@dataclass(frozen=True, slots=True)
class MatrixTrials:
    """Where the results of trials are kept, and how a backend is opened that uses only one kernel, without a trial."""

    results: TrialResults
    open_with: Callable[[MatrixUnits], AnyBackend]


class MatrixUnits:
    """Chooses the kernels with cooperative matrices, unless the precision is ``exact``."""

    name = "cooperative matrices"
    """The kernels' name among the features of a device."""

    def __init__(self, trials: MatrixTrials | None, only: Kernel | None = None) -> None:
        """``only``: the kernel that is used for every GEMM, or for attention, without a trial."""
        self._trials = trials
        self._only = only

    def choose(self, backend: AnyBackend, kernel: Kernel, params: bytes) -> Kernel:
        """The variant of a GEMM or of attention that suits its sizes, if its results are right; else the kernel itself.

        Updates ``backend.info.features`` if this tries a kernel that fails.
        """
        suited = None if backend.precision == "exact" else self.suited(kernel, params)
        return kernel if suited is None else self.tried(backend, kernel, suited)

    def tried(self, backend: AnyBackend, kernel: Kernel, suited: Kernel) -> Kernel:
        """The variant that suits a dispatch, if its results are right; else the kernel itself. See :meth:`choose`."""
        found = self._only or suited
        return found if self._works(backend, found) else kernel

    def suited(self, kernel: Kernel, params: bytes) -> Kernel | None:
        """The variant of a GEMM or of attention that suits its sizes; None if there is none."""
        return matrix_attention(kernel, params) or self._suited_gemm(kernel, params)

    def trials(self, kernel: Kernel) -> list[Trial]:
        """What a variant must compute before it is used."""
        if kernel in MATRIX_ATTENTION:
            return attention_of_many_rows(kernel)
        return rounded_gemms(kernel.name.split("_", 2)[2])

    def _suited_gemm(self, kernel: Kernel, params: bytes) -> Kernel | None:
        small, large = (variant(kernel, f"coopmat{tile}") for tile in COOPMAT_TILES)
        if small is kernel:
            return None
        p = kernel.unpack(params)
        aligned = (p.x_offset | p.x_stride | p.weight_offset | p.out_offset | p.out_stride) % _VECTOR == 0
        if not aligned or p.k % _DEPTH:
            return None
        groups = -(-p.rows // COOPMAT_TILES[1]) * -(-p.n // COOPMAT_TILES[1])
        return small if groups < _MANY else large

    def _works(self, backend: AnyBackend, kernel: Kernel) -> bool:
        if self._trials is None:
            return True
        problem = self._trials.results.problem(kernel.name, partial(self._try, kernel))
        if problem and (said := f"no {kernel.name} ({problem})") not in backend.info.features:
            backend.info = replace(backend.info, features=(*backend.info.features, said))
        return not problem

    def _try(self, kernel: Kernel) -> str | None:
        assert self._trials is not None
        backend = self._trials.open_with(type(self)(None, kernel))
        backend.precision = "standard"
        with OpenDevice(backend) as device:
            return find_problem(device, self.trials(kernel))


def with_matrix_units(key: str, open_with: Callable[[MatrixUnits], B], choosing: type[MatrixUnits] = MatrixUnits) -> B:
    """A backend that uses the kernels with cooperative matrices. ``key`` says what the results of trials depend on.

    ``choosing``: the class that chooses them.
    """
    backend = open_with(choosing(MatrixTrials(TrialResults(f"{key}.trials"), open_with)))
    backend.info = replace(backend.info, features=(*backend.info.features, MatrixUnits.name))
    return backend


class HalfSimdgroups(MatrixUnits):
    """The same for the kernels with Metal's simdgroup matrices of float16, which take GEMMs of all sizes."""

    name = "simdgroup matrices of float16"

    def suited(self, kernel: Kernel, params: bytes) -> Kernel | None:
        """The variant of a GEMM; None if there is none."""
        found = variant(kernel, "simdgroup16")
        return None if found is kernel else found
