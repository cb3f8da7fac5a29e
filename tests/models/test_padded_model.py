"""A padded model says what the model says that it was made of."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from tests.models.oracle import logits_of, relative_error
from tests.models.tiny import write_tiny_llama
from tests.reference.padded_model import pad
from wasmetal import load_model
from wasmetal.device import Device

TOKENS = np.random.default_rng(0).integers(4, 270, 12).tolist()


@pytest.mark.parametrize("options", [{}, {"tied": False, "rope_scaling": "llama3", "heads": 9, "kv_heads": 3}])
def test_logits_are_those_of_the_original(cpu: Device, tmp_path: Path, options: dict) -> None:
    original = write_tiny_llama(tmp_path / "original.gguf", qtype="F16", hidden=256, **options)
    padded = tmp_path / "padded.gguf"
    pad(original, padded)

    matrices = [tensor for tensor in GGUFReader(padded).tensors if len(tensor.shape) > 1]
    assert all(tensor.shape[0] % 256 == 0 for tensor in matrices)
    expected = logits_of(original, TOKENS)
    assert relative_error(logits_of(padded, TOKENS), expected) < 1e-6  # float64, of norms rounded to float32
    with load_model(padded, cpu) as model, model.session() as session:
        logits = model.logits()
        session.forward(TOKENS, logits)
        assert relative_error(logits.numpy(), expected[-1]) < 1e-5


def test_what_cannot_be_padded_is_refused(tmp_path: Path) -> None:
    qwen = write_tiny_llama(tmp_path / "qwen.gguf", architecture="qwen2", hidden=256)
    narrow = write_tiny_llama(tmp_path / "narrow.gguf", hidden=160)
    experts = write_tiny_llama(tmp_path / "experts.gguf", hidden=256, experts=4)
    for path, message in (qwen, "a qwen2"), (narrow, "network of 160"), (experts, "ffn_gate_exps"):
        with pytest.raises(ValueError, match=message):
            pad(path, tmp_path / "padded.gguf")
