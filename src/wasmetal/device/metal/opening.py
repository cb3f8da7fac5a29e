"""Opening a GPU with the GEMM implementations that agree with the NumPy kernels.

Trials run on a separate device, so that they do not show in the opened device's counters; both share the pipelines.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import product

from wasmetal.device.metal.api import load_mps
from wasmetal.device.metal.device import MetalBackend
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.pipeline import Pipelines
from wasmetal.device.metal.products import LEAST, Kinds, Products
from wasmetal.device.opened import OpenDevice
from wasmetal.device.trial import chain_differs, find_obstacle, gemm, matmul
from wasmetal.device.verdicts import Verdicts
from wasmetal.kernels.dtypes import WEIGHTS


def open_gpu(physical: PhysicalDevice) -> MetalBackend:
    """Open a GPU. Raises DeviceError."""
    asked = os.environ.get("WASMETAL_METAL_ICB") == "1"
    pipelines = Pipelines(physical, asked and not physical.virtual)
    backend = MetalBackend(physical, pipelines)
    verdicts = Verdicts(f"{pipelines.archive.key}.verdicts")
    if asked:
        no_indirect = _no_indirect(physical, pipelines, verdicts)
        backend.indirect = no_indirect is None
        named = "indirect command buffers"
        backend.features += (f"no {named} ({no_indirect})" if no_indirect else named,)
    no_simdgroups = verdicts.obstacle("simdgroup matrices", partial(_try_simdgroups, physical, pipelines))
    no_mps = _no_mps(physical)
    backend.simdgroups = no_simdgroups is None
    if no_mps is None:
        backend.products = Products(physical.handle, LEAST, partial(_try_mps, physical, pipelines, verdicts))
    kept = {"residency set": backend.queue.residency.kept, "pipeline archive": pipelines.archive.kept}
    backend.features += (
        *(name for name, has in kept.items() if has),
        f"no simdgroup matrices ({no_simdgroups})" if no_simdgroups else "simdgroup matrices",
        *((f"no MPS ({no_mps})",) if no_mps else ()),
    )
    backend.describe()
    return backend


def _try_simdgroups(physical: PhysicalDevice, pipelines: Pipelines) -> str | None:
    """Why the kernels with simdgroup matrices cannot be used; None if all of them are right."""
    backend = MetalBackend(physical, pipelines)
    backend.simdgroups = True
    m, n, k = 37, 71, 96  # a full tile and a partial one, edges inside an 8 × 8 matrix, several steps along k
    gemms = [gemm(dtype.suffix, m, n, k) for dtype in WEIGHTS]
    floats = ("f32", "f16")
    matmuls = [matmul(kind, result, m, n, k, transpose_b=True) for kind, result in product(floats, floats)]
    return find_obstacle(OpenDevice(backend), gemms + matmuls)


def _no_indirect(physical: PhysicalDevice, pipelines: Pipelines, verdicts: Verdicts) -> str | None:
    """Why indirect command buffers cannot be used; None if a list gives the same bytes with and without them."""
    if physical.virtual:
        return "a virtual GPU"

    def run() -> str | None:
        indirect, plain = MetalBackend(physical, pipelines), MetalBackend(physical, pipelines)
        indirect.indirect = True
        return chain_differs(OpenDevice(indirect), OpenDevice(plain))

    return verdicts.obstacle("indirect command buffers", run)


def _no_mps(physical: PhysicalDevice) -> str | None:
    """Why MPS is not even tried; None if it may be.

    On virtual GPUs MPS is known to abort the process or to give wrong results; WASMETAL_NO_MPS=0 tries it there too.
    """
    switch = os.environ.get("WASMETAL_NO_MPS")
    if switch == "1":
        return "WASMETAL_NO_MPS=1"
    return "a virtual GPU" if physical.virtual and switch != "0" else None


def _try_mps(physical: PhysicalDevice, pipelines: Pipelines, verdicts: Verdicts, kinds: Kinds) -> str | None:
    """Why MPS cannot compute GEMMs of these types; None if it is right for every layout of the operands."""
    mps = load_mps()
    if mps is None:
        return "pyobjc-framework-MetalPerformanceShaders is not installed"
    if not mps.MPSSupportsMTLDevice(physical.handle):
        return "MPS does not support this GPU"

    def run() -> str | None:
        backend = MetalBackend(physical, pipelines)
        backend.products = Products(physical.handle, 0, lambda _: None)
        m, n, k = 72, 136, 264  # not multiples of 16
        kind, _, result = kinds
        trials = [
            matmul(kind, result, m, n, k, gap=16, transpose_a=a, transpose_b=b)
            for a, b in product((False, True), (False, True))
        ]
        if kind == "f32":
            trials += [gemm(kind, m, n, k, gap=16, accumulate=accumulate) for accumulate in (False, True)]
        return find_obstacle(OpenDevice(backend), trials)

    return verdicts.obstacle(f"MPS {' '.join(kinds)}", run)
