"""Check folders of Hugging Face against transformers, on small random models that it saves, in several files.

    python tests/reference/check_hf_folders.py [--device cpu]...

Needs torch and transformers (``pip install -e .[reference]``). Compared are the logits of each position.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.models.folder import write_tokenizer
from tests.reference.check_architectures import GEMMA3, SHAPE, TOLERANCE, tiny
from tests.reference.check_architectures import MODELS as CHECKED
from wasmetal import load_model, open_device

THIRDS = ["full_attention" if (i + 1) % 3 == 0 else "sliding_attention" for i in range(7)]

NOT_YET = ("gpt-oss", "gpt_oss")
"""Of these, no folders are supported yet."""

MODELS: dict[str, Any] = {
    **{name: make for name, make in CHECKED.items() if not any(kind in name for kind in NOT_YET)},
    "llama, tied": partial(tiny, "Llama", tie_word_embeddings=True),
    "qwen2, in half precision": lambda: tiny("Qwen2").to(torch.float16),
    "gemma3, every third layer": partial(tiny, "Gemma3", **GEMMA3 | {"layer_types": THIRDS}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", action="append", default=None)
    worst = 0.0
    for spec in parser.parse_args().device or ["cpu"]:
        with open_device(spec) as device:
            for name, make in MODELS.items():
                torch.manual_seed(0)
                model = make().eval()
                with torch.no_grad():
                    for parameter in (p for n, p in model.named_parameters() if n.endswith((".bias", "norm.weight"))):
                        parameter.add_(torch.randn_like(parameter), alpha=0.2)
                error = compare(model, device)
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
        with load_model(folder, device, kv_type="f32") as loaded, loaded.session() as session:
            out, errors = loaded.logits(), []
            for token, row in zip(tokens, expected, strict=True):
                session.forward([token], out)
                errors.append(np.linalg.norm(out.numpy() - row) / np.linalg.norm(row))
    return float(max(errors))


if __name__ == "__main__":
    main()
