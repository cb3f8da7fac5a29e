"""Finding GPUs, and opening one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.cuda.context import Context
from wasmetal.device.cuda.device import CudaBackend
from wasmetal.device.cuda.physical import PhysicalDevice, physical_devices
from wasmetal.device.cuda.pipeline import CudaPipelines
from wasmetal.device.matrix_units import MatrixTrials, MatrixUnits
from wasmetal.device.trial_results import TrialResults


def find_devices() -> list[FoundDevice]:
    """Every GPU that the driver lists, in its order. Raises DeviceNotFoundError without a driver."""
    return found_devices(physical_devices(), open_gpu)


def open_gpu(physical: PhysicalDevice) -> CudaBackend:
    """Open a GPU. Raises DeviceError."""
    context = Context(physical)
    pipelines = CudaPipelines(context)
    trials = MatrixTrials(TrialResults(f"{pipelines.key}.trials"), partial(CudaBackend, context, pipelines))
    backend = CudaBackend(context, pipelines, MatrixUnits(trials))
    backend.info = replace(backend.info, features=backend.info.features + MatrixUnits.features)
    return backend
