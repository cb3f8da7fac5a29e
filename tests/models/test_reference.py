"""SmolLM2-135M-Instruct against transformers in float32 (``tests/reference/make_reference.py`` wrote the reference)."""

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.oracle import relative_error
from wasmetal.device import Device
from wasmetal.models import load_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "reference/smollm2_135m.json").read_text())


@pytest.mark.slow_on("vulkan")
@pytest.mark.parametrize("count", [6, pytest.param(24, marks=pytest.mark.slow)])
def test_logits(device: Device, smollm2: Path, reference: dict[str, Any], count: int) -> None:
    """After the prompt, and after each of ``count`` tokens: 400 logits of each vector, and the length of the whole."""
    if device.info.name.startswith("emulated") and os.environ.get("WASMETAL_EMULATE_SMOLLM2") != "1":
        pytest.skip("on an emulated GPU it takes minutes: set WASMETAL_EMULATE_SMOLLM2=1")
    if "llvmpipe" in device.info.name and count > 6:
        pytest.skip("on lavapipe it takes a minute, and says no more than after 6 tokens")
    tolerance = 1e-4 if device.info.backend == "cpu" else 1e-3
    with load_model(smollm2, device, kv_type="f32") as model, model.session() as session:
        assert model.tokenizer.encode(reference["prompt"]) == reference["prompt_ids"]
        logits = model.logits()
        got = logits.buffer.view().view(np.float32)
        tokens = reference["prompt_ids"]
        expectations = zip(reference["logits"], reference["norms"], reference["greedy_ids"][:25], strict=True)
        for expected, norm, following in islice(expectations, count + 1):
            session.forward(tokens, logits)
            assert relative_error(got[reference["places"]], np.array(expected)) < tolerance
            assert abs(np.linalg.norm(got.astype(np.float64)) / norm - 1) < tolerance
            assert got.argmax() == following
            tokens = [following]
        assert session.length == 5 + count
        assert model.tokenizer.decode(reference["greedy_ids"]).startswith(" Paris.")


def test_greedy_ids(cpu: Device, smollm2: Path, reference: dict[str, Any]) -> None:
    with load_model(smollm2, cpu) as model, model.session() as session:
        logits = model.logits()
        got = logits.buffer.view().view(np.float32)
        ids: list[int] = []
        while len(ids) < 48:
            session.forward(ids[-1:] or reference["prompt_ids"], logits)
            ids.append(int(got.argmax()))
    assert ids == reference["greedy_ids"]
