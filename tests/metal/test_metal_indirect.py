"""Indirect command buffers, used only on request, and only if they give the same results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.device.harness import floats, recorded, span
from tests.metal.standin import Gpu, bridge
from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device
from wasmetal.models import load_model

pytestmark = pytest.mark.usefixtures("tried")

FEATURE = "indirect command buffers"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_METAL_ICB", "1")


def test_they_are_not_used_by_default(emulated: Device) -> None:
    assert not [feature for feature in emulated.info.features if FEATURE in feature]
    assert not emulated.backend.indirect


def logits(device: Device, path: Path) -> bytes:
    with load_model(path, device) as model, model.session() as session:
        out = model.logits()
        session.forward([3, 1, 4, 1, 5], out)
        for token in (9, 2, 6):
            session.forward([token], out)
        return out.buffer.view().tobytes()


@pytest.mark.parametrize("families", [("Apple7", "Metal3"), ("Apple9", "Metal3")], ids=["M1", "M3"])
def test_a_model_computes_the_same(
    open_on: Callable[[Gpu], Device],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    families: tuple[str, ...],
) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    want = logits(open_on(Gpu(families=families)), path)
    monkeypatch.setenv("WASMETAL_METAL_ICB", "1")
    device = open_on(Gpu(families=families))
    assert FEATURE in device.info.features
    before = bridge.calls["executeCommandsInBuffer:withRange:"]
    assert logits(device, path) == want
    # Layers and head of 4 steps, and of one that was encoded ahead in vain; and the check of the file.
    assert bridge.calls["executeCommandsInBuffer:withRange:"] == before + 11


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("gpu", "problem"),
    [
        (Gpu(name="Apple Paravirtual device"), "a virtual GPU"),
        (Gpu(indirect="none"), "emulated Metal made no indirect command buffer; unset WASMETAL_METAL_ICB"),
        (Gpu(indirect="without barriers"), "wrong results for a chain of kernels"),
    ],
    ids=["virtual", "none", "without barriers"],
)
def test_unusable_ones_are_not_used(open_on: Callable[[Gpu], Device], gpu: Gpu, problem: str) -> None:
    device = open_on(gpu)
    assert f"no {FEATURE} ({problem})" in device.info.features
    buffer = device.allocate(64)
    floats(buffer)[:] = 1
    whole = span(buffer, 0, 16)
    device.submit([recorded(device, (whole, whole, whole), (whole, whole, whole))]).wait()
    assert np.all(floats(buffer) == 4)
