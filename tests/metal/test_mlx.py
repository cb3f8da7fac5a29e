"""The bridge to MLX, against the contract of ``asarray``; against MLX itself if it is installed."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import numpy as np
import pytest

from tests.metal.devices import EMULATED
from wasmetal.device import Device
from wasmetal.errors import DeviceError
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region
from wasmetal.mlx import as_array
from wasmetal.ops import DType, Tensor

Core = types.SimpleNamespace


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    """An ``mlx.core`` that shares, as the real one does on a Mac; its arrays are NumPy's."""
    module = types.ModuleType("mlx.core")
    module.asarray = lambda array, copy: array
    module.float32, module.float16, module.int32 = np.float32, np.float16, np.int32
    package = types.ModuleType("mlx")
    package.core = module
    monkeypatch.setitem(sys.modules, "mlx", package)
    monkeypatch.setitem(sys.modules, "mlx.core", module)
    return module


@pytest.fixture
def region():
    made = Region(4 * page_size(), 4 * page_size())
    yield made
    made.close()


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.I32])
def test_an_array_over_the_tensors_own_bytes(core: Core, metal: Device, region: Region, dtype: DType) -> None:
    buffer = metal.wrap(region.aperture(page_size(), 2 * page_size()))
    tensor = Tensor(buffer, page_size() - 32, dtype, (3, 8))  # across two pages
    copied = metal.counters.bytes_copied
    array = as_array(tensor)
    assert array.shape == (3, 8)
    assert array.ctypes.data == region.address + 2 * page_size() - 32
    array[2, 7] = 5
    assert buffer.view()[tensor.offset :][: tensor.nbytes].view(array.dtype)[-1] == 5
    assert metal.counters.bytes_copied == copied


@pytest.mark.parametrize(
    ("asarray", "words"),
    [
        (lambda array, copy: array.copy(), "made a copy"),
        (lambda array: array, "refused to share"),
        (lambda array, copy: (_ for _ in ()).throw(ValueError("a copy is required")), "a copy is required"),
    ],
)
def test_refused_rather_than_copied(
    core: Core, metal: Device, region: Region, asarray: Callable[..., object], words: str
) -> None:
    core.asarray = asarray
    buffer = metal.wrap(region.aperture(0, page_size()))
    with pytest.raises(DeviceError, match=words):
        as_array(Tensor(buffer, 0, DType.F32, (4,)))


def test_what_cannot_be_shared(core: Core, metal: Device, region: Region) -> None:
    buffer = metal.wrap(region.aperture(0, page_size()))
    for tensor in (Tensor(buffer, 0, DType.Q8_0, (2, 32)), Tensor(buffer, 0, DType.F32, (2, 4), row_stride=8)):
        with pytest.raises(DeviceError, match="cannot share a tensor"):
            as_array(tensor)
    with pytest.raises(DeviceError, match="whole pages"):
        as_array(Tensor(metal.allocate(100), 0, DType.F32, (4,)))


def test_without_mlx(metal: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    monkeypatch.setitem(sys.modules, "mlx", None)
    with pytest.raises(DeviceError, match="pip install"):
        as_array(Tensor(metal.allocate(page_size()), 0, DType.F32, (4,)))


def test_with_mlx_itself(metal: Device, region: Region) -> None:
    """On a Mac MLX shares the memory. Elsewhere it cannot, which is an error."""
    mx = pytest.importorskip("mlx.core")
    buffer = metal.wrap(region.aperture(0, page_size()))
    tensor = Tensor(buffer, 64, DType.F32, (2, 4))
    if EMULATED:
        with pytest.raises(DeviceError, match="refused to share"):
            as_array(tensor)
        return
    values = region.view()[64:96].view(np.float32)
    values[:] = np.arange(8)
    array = as_array(tensor)
    assert array.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    doubled = array + array
    mx.eval(doubled)
    assert doubled.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14]]
