"""Finding GPUs, and opening one with those of its optional features that compute what the NumPy kernels compute.

Trials run on separate devices, so that they do not show in the opened device's counters; all share the pipelines.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.gemm_trials import every_gemm
from wasmetal.device.libraries.base import LibraryTrials
from wasmetal.device.libraries.mps import Mps, mps_off
from wasmetal.device.matrix_units import HalfSimdgroups, MatrixTrials
from wasmetal.device.metal.device import MetalBackend
from wasmetal.device.metal.physical import PhysicalDevice, physical_devices
from wasmetal.device.metal.pipeline import MetalPipelines
from wasmetal.device.opened import OpenDevice
from wasmetal.device.trial import chain_differs, find_problem
from wasmetal.device.trial_results import TrialResults


def find_devices() -> list[FoundDevice]:
    """Every GPU that Metal lists, in Metal's order."""
    return found_devices(physical_devices(), open_gpu)


def open_gpu(physical: PhysicalDevice) -> MetalBackend:
    """Open a GPU. Raises DeviceError."""
    asked = os.environ.get("WASMETAL_METAL_ICB") == "1"
    pipelines = MetalPipelines(physical, asked and not physical.virtual)
    results = TrialResults(f"{pipelines.key}.trials")
    new = partial(MetalBackend, physical, pipelines)

    def try_simdgroups() -> str | None:
        return find_problem(OpenDevice(new(simdgroups=True)), every_gemm())

    def try_indirect() -> str | None:
        if physical.virtual:
            return "a virtual GPU"
        return chain_differs(OpenDevice(new(indirect=True)), OpenDevice(new()))

    simdgroups = results.uses("simdgroup matrices", try_simdgroups)
    indirect = asked and results.uses("indirect command buffers", try_indirect)
    no_mps = mps_off(physical.virtual)
    trials = LibraryTrials(results, lambda: OpenDevice(new(library=Mps(physical.handle))))
    mps = None if no_mps else Mps(physical.handle, trials)
    halves = HalfSimdgroups(MatrixTrials(results, partial(new, True))) if simdgroups else None
    backend = new(simdgroups, halves, mps, indirect)
    has = {"residency set": backend.queue.residency.kept, "pipeline archive": pipelines.archived}
    features = *results.features, *(name for name in has if has[name])
    features += mps.features if mps else (f"no MPS ({no_mps})",)
    backend.info = replace(physical.info, features=physical.info.features + features)
    return backend
