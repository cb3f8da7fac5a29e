"""CUDA's device on a real GPU: what the tests of all devices do not see."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tests.conftest import HAS_CUDA
from tests.device.harness import Vectors, recorded
from wasmetal.device import Device, open_device
from wasmetal.memory.region import Region

pytestmark = pytest.mark.skipif(not HAS_CUDA, reason="no GPU of NVIDIA's")


def test_guest_pages_have_one_address(cuda: Device) -> None:
    region = Region(1 << 20, 1 << 16)
    buffer = cuda.wrap(region.aperture(0, region.size))
    assert buffer.address == buffer.device_address == region.address
    buffer.close()
    region.close()


def test_overlapping_wraps_and_growth(cuda: Device) -> None:
    """Ranges of the same pages, wrapped and closed in any order, while the memory grows: kernels see all of them."""
    region = Region(1 << 20, 1 << 16)
    whole = cuda.wrap(region.aperture(0, region.size))
    half = cuda.wrap(region.aperture(0, region.size // 2))
    region.grow(1 << 18)
    grown = cuda.wrap(region.aperture(0, region.size))
    for buffer in half, whole, grown:
        vectors = Vectors(cuda, 3, 64, buffer=buffer)
        vectors.view(0)[:], vectors.view(1)[:] = 1, 2
        commands = recorded(cuda, (vectors[0], vectors[1], vectors[2]))
        cuda.submit([commands]).wait(10)
        assert (vectors.view(2) == 3).all()
        commands.close()
        buffer.close()
    region.close()


def test_a_list_becomes_a_graph(cuda: Device) -> None:
    """The second submission of a list captures it, and later ones replay that."""
    vectors = Vectors(cuda, 1, 256)
    vectors.write(0, 1.0)
    commands = recorded(cuda, *[(vectors[0], vectors[0], vectors[0])] * 3)
    for times in range(1, 5):
        cuda.submit([commands]).wait(10)
        assert (vectors.read(0) == 2.0 ** (3 * times)).all()
        assert (commands.recording._replay is None) == (times == 1)


def test_compiled_kernels_are_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wasmetal.device.cuda import pipeline

    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    compiled = []
    real = pipeline.compile_kernel
    monkeypatch.setattr(pipeline, "compile_kernel", lambda kernel, arch: compiled.append(kernel) or real(kernel, arch))
    for _ in range(2):
        with open_device("cuda") as device:
            vectors = Vectors(device, 3, 64)
            device.submit([recorded(device, (vectors[0], vectors[1], vectors[2]))]).wait(30)
    assert [kernel.name for kernel in compiled] == ["add"]


def test_device_memory_is_freed() -> None:
    from wasmetal.device.cuda.api import call

    with open_device("cuda") as device:
        for kept in range(6):
            buffer = device.allocate(1 << 30)
            assert not np.any(_some_bytes(device, buffer))
            buffer.close()
            del buffer
            gc.collect()
            vectors = Vectors(device, 3, 64)
            device.submit([recorded(device, (vectors[0], vectors[1], vectors[2]))]).wait(10)
            free, _ = _memory(call)
            if kept == 1:
                before = free
        assert free >= before - (64 << 20)


def _some_bytes(device: Device, buffer) -> np.ndarray:
    out = np.empty(1 << 20, np.uint8)
    device.read(buffer, (1 << 30) - out.size, out)
    return out


def _memory(call) -> tuple[int, int]:
    from wasmetal.device.cuda.api import cu

    _, free, total = cu.cuMemGetInfo()
    return int(free), int(total)


def test_garbage_leaves_the_current_context() -> None:
    """Of another GPU, if there are two: a finalizer may run between any two calls of the driver's."""
    from wasmetal.device.cuda.api import call
    from wasmetal.device.cuda.context import Context, Owned
    from wasmetal.device.cuda.physical import physical_devices

    gpus = physical_devices()
    contexts = Context(gpus[0]), Context(gpus[-1])
    for one, other in (contexts, contexts[::-1]):
        event = Owned(one, "Event", 0)
        other.use()
        current = int(call("cuCtxGetCurrent"))
        del event
        gc.collect()
        assert int(call("cuCtxGetCurrent")) == current
