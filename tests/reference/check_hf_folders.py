"""Check folders of Hugging Face against transformers, on small random models that it saves, in several files.

    python tests/reference/check_hf_folders.py [--device cpu]...

Needs torch and transformers (``pip install -e .[reference]``). Compared are the logits of each position.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.models.folder import write_tokenizer
from tests.reference.check_architectures import SHAPE, TOLERANCE
from wasmetal import load_model, open_device

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)),
    "llama, linear RoPE": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    ),
    "llama 3, tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE)),
    "qwen2, tied, in half precision": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True)
    ).to(torch.float16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", action="append", default=None)
    worst = 0.0
    for spec in parser.parse_args().device or ["cpu"]:
        with open_device(spec) as device:
            for name, make in MODELS.items():
                torch.manual_seed(0)
                error = compare(make().eval(), device)
                worst = max(worst, error)
                print(f"{device.info.spec}  {name}: relative error {error:.2e}")
    if worst > TOLERANCE:
        sys.exit(f"the largest error is above {TOLERANCE}")


@torch.inference_mode()
def compare(model: transformers.PreTrainedModel, device: Any) -> float:
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], 100).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, max_shard_size="100KB")
        write_tokenizer(folder)
        assert (folder / "model.safetensors.index.json").exists()
        reference = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
        with load_model(folder, device) as loaded, loaded.session() as session:
            out, errors = loaded.logits(), []
            for token, row in zip(tokens, expected, strict=True):
                session.forward([token], out)
                errors.append(np.linalg.norm(out.numpy() - row) / np.linalg.norm(row))
    return float(max(errors))


if __name__ == "__main__":
    main()
