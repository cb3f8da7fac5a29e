"""Decoding with activations that are rounded to 8 bits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.models.tiny import write_tiny_llama
from wasmetal import load_model, open_device
from wasmetal.device.cpu.library import library
from wasmetal.errors import DeviceError

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels for this processor")

TEXT = """The lighthouse keeper climbed the stairs every evening and lit the lamp for the ships out at sea. In winter
the storms came from the north, and the waves broke over the rocks with such force that the windows shook. He wrote the
weather in a book: wind, clouds, the height of the water. On clear days he could see the mountains on the other side of
the bay, and in spring the first boats that went out to fish. When the lamp was replaced by an electric one, nobody had
to stay, but he came back each summer to paint the door."""


def perplexity(precision: str) -> float:
    """Of the text, decoded token by token."""
    with open_device("cpu", precision) as device, load_model("smollm2:135m", device) as model:  # type: ignore[arg-type]
        ids = model.tokenizer.encode(TEXT)
        logits = model.logits()
        total = 0.0
        with model.session() as session:
            for token, following in itertools.pairwise(ids):
                session.forward([token], logits)
                scores = logits.numpy().astype(np.float64)
                scores -= scores.max()
                total += np.log(np.exp(scores).sum()) - scores[following]
    return float(np.exp(total / (len(ids) - 1)))


@pytest.mark.model
def test_perplexity() -> None:
    assert perplexity("fast") <= 1.002 * perplexity("exact")


def test_only_what_is_asked_for_is_rounded(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    results = {}
    for precision in ("exact", "fast"):
        with open_device("cpu", precision) as device, load_model(path, device) as model:  # type: ignore[arg-type]
            logits = model.logits()
            with model.session() as session:
                session.forward([1, 2, 3], logits)
                prefilled = logits.numpy().copy()
                session.forward([4], logits)
            results[precision] = prefilled, logits.numpy().copy()
    (prefilled, exact), (rounded_prefilled, rounded) = results["exact"], results["fast"]
    assert (prefilled != rounded_prefilled).any() or (exact != rounded).any()
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


def test_a_precision_that_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_PRECISION", "roughly")
    with pytest.raises(DeviceError, match="'roughly'; choose exact, standard, fast"):
        open_device("cpu")
