"""What is said where the driver, a package or a GPU is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import HAS_CUDA


def message(code: str) -> str:
    """The error that a process prints for ``open_device("cuda")``, after ``code``."""
    program = f"""
import sys
{code}
from wasmetal import open_device
from wasmetal.errors import WasmetalError
try:
    open_device("cuda")
except WasmetalError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_no_package() -> None:
    said = message("sys.modules['cuda'] = sys.modules['cuda.bindings'] = None")
    assert said == "DeviceNotFoundError: the package cuda-bindings is not installed: pip install 'wasmetal[cuda]'"


@pytest.mark.skipif(HAS_CUDA, reason="there is a driver")
def test_no_driver() -> None:
    pytest.importorskip("cuda.bindings")
    assert message("").startswith("DeviceNotFoundError: no NVIDIA driver (libcuda): install it")


@pytest.mark.skipif(HAS_CUDA, reason="there is a driver")
def test_other_devices_are_found_without_a_driver() -> None:
    said = message("from wasmetal.device import list_devices; print([i.backend for i in list_devices()])")
    assert "'cpu'" in said.splitlines()[0]
    assert "'cuda'" not in said.splitlines()[0]


def test_a_result_becomes_an_error() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    from wasmetal.device.cuda.api import failure
    from wasmetal.errors import DeviceError, DeviceLostError, OutOfDeviceMemoryError

    results = driver.CUresult
    for result, kind in (
        (results.CUDA_ERROR_OUT_OF_MEMORY, OutOfDeviceMemoryError),
        (results.CUDA_ERROR_ILLEGAL_ADDRESS, DeviceLostError),
        (results.CUDA_ERROR_INVALID_VALUE, DeviceError),
    ):
        error = failure(result, "cuSomething")
        assert type(error) is kind
        assert "\n" not in str(error)
        assert f"cuSomething: {result.name.removeprefix('CUDA_ERROR_')}" in str(error)
