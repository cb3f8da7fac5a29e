"""Check folders of Hugging Face against transformers, on small random models that it saves, in several files.

    python tests/reference/check_hf_folders.py [--device cpu]... [--only gpt-oss]

Needs torch and transformers (``pip install -e .[reference]``). Compared are the logits of each position, decoded one by
one, and those after a prompt and after 16 more tokens. Relative error is ‖ours − reference‖ / ‖reference‖. Of
gpt-oss, a folder with MXFP4 is made, too: random blocks, which transformers expands. ``check_hf_embeddings.py`` has the
folders of embedding models.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.models.folder import write_tokenizer
from tests.reference.check_architectures import DECODED, GEMMA3, GPT_OSS, SCALED, SHAPE, TOLERANCE, tiny
from tests.reference.check_architectures import MODELS as CHECKED
from wasmetal import load_model, open_device

THIRDS = ["full_attention" if (i + 1) % 3 == 0 else "sliding_attention" for i in range(7)]
POSITIONS = 100

MODELS: dict[str, Any] = {
    **CHECKED,
    "llama, tied": partial(tiny, "Llama", tie_word_embeddings=True),
    "qwen2, in half precision": lambda: tiny("Qwen2").to(torch.float16),
    "gemma3, every third layer": partial(tiny, "Gemma3", **GEMMA3 | {"layer_types": THIRDS}),
    "gpt-oss, in half precision": lambda: tiny("GptOss", SCALED["yarn"] | {"truncate": False}, **GPT_OSS).bfloat16(),
    "gpt-oss, RoPE of the large model": partial(tiny, "GptOss", **GPT_OSS),
    "gpt-oss, in MXFP4": partial(tiny, "GptOss", SCALED["yarn"] | {"truncate": False}, **GPT_OSS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", action="append", default=None)
    parser.add_argument("--only", default="", help="models whose names begin so")
    options = parser.parse_args()
    worst = 0.0
    for spec in options.device or ["cpu"]:
        with open_device(spec) as device:
            for name, make in MODELS.items():
                if not name.startswith(options.only):
                    continue
                torch.manual_seed(0)
                model = make().eval()
                with torch.no_grad():
                    for parameter in (
                        p for n, p in model.named_parameters() if n.endswith(("bias", "norm.weight", "sinks"))
                    ):
                        parameter.add_(torch.randn_like(parameter), alpha=0.2)
                error = compare(model, device, mxfp4="MXFP4" in name)
                worst = max(worst, error)
                print(f"{device.info.spec}  {name}: relative error {error:.2e}", flush=True)
    if not worst < TOLERANCE:
        sys.exit(f"the largest error is above {TOLERANCE}")


@torch.inference_mode()
def compare(model: transformers.PreTrainedModel, device: Any, mxfp4: bool) -> float:
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], POSITIONS).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blocks = random_blocks(model) if mxfp4 else {}
        model.save_pretrained(folder, max_shard_size="100KB")
        write_tokenizer(folder)
        assert (folder / "model.safetensors.index.json").exists()
        reference = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
        if blocks:
            replace_by(folder, blocks)
        with load_model(folder, device, kv_type="f32") as loaded:
            kinds = {tensor.dtype.name for tensor in loaded_tensors(folder)}
            assert ("MXFP4" in kinds) == mxfp4, kinds
            out, errors = loaded.logits(), []

            def forward(session: Any, some: list[int], position: int) -> None:
                session.forward(some, out)
                row = expected[position]
                errors.append(np.linalg.norm(out.numpy() - row) / np.linalg.norm(row))

            with loaded.session() as session:
                for position, token in enumerate(tokens):
                    forward(session, [token], position)
            prompt = POSITIONS - DECODED
            with loaded.session() as session:
                forward(session, tokens[:prompt], prompt - 1)
                for position in range(prompt, POSITIONS):
                    forward(session, [tokens[position]], position)
    return float(max(errors))


def loaded_tensors(folder: Path) -> Any:
    from wasmetal.models.hf_folder import open_model_file

    return open_model_file(folder).tensors.values()


def random_blocks(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Blocks and scales of MXFP4 by their names in a folder, and in the model what transformers makes of them."""
    blocks = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, columns, rows = parameter.shape
            shape = experts, rows, columns // 32
            blocks[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            blocks[f"{name}_scales"] = torch.randint(122, 126, shape, dtype=torch.uint8)
            expanded = convert_moe_packed_tensors(
                blocks[f"{name}_blocks"], blocks[f"{name}_scales"], dtype=torch.float32
            )
            assert expanded.shape == parameter.shape
            parameter.copy_(expanded)
    return blocks


def replace_by(folder: Path, blocks: dict[str, torch.Tensor]) -> None:
    """Write a folder's weights anew, in three files, with blocks in place of the tensors that they are of."""
    path = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    tensors = {name: tensor for file in files for name, tensor in load_file(folder / file).items()} | blocks
    tensors = {name: tensor for name, tensor in tensors.items() if f"{name}_blocks" not in tensors}
    for file in files:
        (folder / file).unlink()
    places = {name: f"model-{i % 3:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
