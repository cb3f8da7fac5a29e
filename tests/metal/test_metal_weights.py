"""Model files used in place on an emulated GPU, or copied to it on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.metal.standin import Gpu
from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device
from wasmetal.errors import WrapRefusedError
from wasmetal.memory.pages import page_size
from wasmetal.models import load_model

pytestmark = pytest.mark.usefixtures("tried")

TABLE = 256 * 8 * 2 * 4
"""Bytes of the table of positions, which is not a weight, and always copied to the device."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf", value_qtype="Q8_0")


def logits(device: Device, path: Path) -> np.ndarray:
    with load_model(path, device) as model, model.session() as session:
        out = model.logits()
        session.forward([3, 1, 4, 1, 5], out)
        session.forward([9], out)
        return out.buffer.view().view(np.float32).copy()


@pytest.fixture
def copied(open_on: Callable[[Gpu], Device], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], np.ndarray]:
    """The logits of a model with its weights copied to the device."""

    def run(path: Path) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setenv("WASMETAL_COPY_WEIGHTS", "1")
            device = open_on(Gpu())
        assert "weights copied" in device.info.features
        found = logits(device, path)
        assert device.counters.bytes_loaded > TABLE + path.stat().st_size * 0.8
        assert device.counters.bytes_shared == 0
        return found

    return run


Copied = Callable[[Path], np.ndarray]


def test_weights_stay_in_their_file(tiny: Path, emulated: Device, copied: Copied) -> None:
    assert "weights in place" in emulated.info.features
    assert np.array_equal(logits(emulated, tiny), copied(tiny))
    assert emulated.counters.bytes_loaded == TABLE
    assert emulated.counters.bytes_shared == -(-tiny.stat().st_size // page_size()) * page_size()
    assert emulated.counters.bytes_copied == 0


def test_a_file_longer_than_a_buffer(tmp_path: Path, open_on: Callable[[Gpu], Device], copied: Copied) -> None:
    path = write_tiny_llama(tmp_path / "long.gguf", qtype="F32", blocks=12)
    device = open_on(Gpu(max_buffer_length=2 << 20))
    assert path.stat().st_size > 3 << 20
    assert np.array_equal(logits(device, path), copied(path))
    assert device.counters.bytes_loaded == TABLE


def test_what_is_not_aligned_is_brought(
    tmp_path: Path, emulated: Device, copied: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf.GGUFWriter, "add_name", lambda writer, name: writer.add_custom_alignment(8))
    packed = write_tiny_llama(tmp_path / "packed.gguf", value_qtype="Q8_0")
    assert np.array_equal(logits(emulated, packed), copied(packed))
    assert TABLE < emulated.counters.bytes_loaded < packed.stat().st_size


def test_a_gpu_that_sees_other_bytes(tiny: Path, gpu: Gpu, emulated: Device) -> None:
    """As virtual GPUs did: without an error, it computes with stale bytes."""
    gpu.stale_files = True
    with pytest.raises(WrapRefusedError, match="WASMETAL_COPY_WEIGHTS=1"):
        load_model(tiny, emulated)
    assert not gpu.live


def test_a_gpu_that_will_not_have_file_pages(tiny: Path, gpu: Gpu, emulated: Device) -> None:
    gpu.nil_buffer = True
    with pytest.raises(WrapRefusedError, match="WASMETAL_COPY_WEIGHTS=1"):
        load_model(tiny, emulated)
