"""Finding GPUs, and opening one."""

from __future__ import annotations

from functools import partial

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.cuda.context import Context
from wasmetal.device.cuda.cublas import Cublas
from wasmetal.device.cuda.device import CudaBackend
from wasmetal.device.cuda.matrices import MatrixInstructions
from wasmetal.device.cuda.physical import PhysicalDevice, physical_devices
from wasmetal.device.cuda.pipeline import CudaPipelines
from wasmetal.device.matrix_units import with_matrix_units
from wasmetal.device.trial_results import TrialResults


def find_devices() -> list[FoundDevice]:
    """Every GPU that the driver lists, in its order. Raises DeviceNotFoundError without a driver."""
    return found_devices(physical_devices(), open_gpu)


def open_gpu(physical: PhysicalDevice) -> CudaBackend:
    """Open a GPU. Raises DeviceError."""
    context = Context(physical)
    pipelines = CudaPipelines(context)
    open_with = partial(CudaBackend, context, pipelines)
    backend = with_matrix_units(pipelines.key, open_with, MatrixInstructions)
    results = TrialResults(f"{pipelines.key}.cublas.trials")
    backend.cublas = Cublas(context, pipelines, results, partial(open_with, MatrixInstructions(None)))
    return backend
