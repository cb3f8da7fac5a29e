"""Check files that llama.cpp writes against transformers: a new random model, converted and quantized by llama.cpp.

    python tests/reference/check_llama_cpp_files.py --llama-cpp SOURCE --llama-quantize PROGRAM [--device cpu]

Needs torch and transformers (``pip install -e .[reference]``), what llama.cpp's ``convert_hf_to_gguf.py`` needs
(sentencepiece), and SmolLM2 (``wasmetal pull smollm2:135m``), whose tokenizer the model has. Compared are the tokens of
a text, and the logits after a prompt: of the folder that transformers saves, of the file in F16, and of each quantized
file, whose reference are the weights that the package ``gguf`` expands. Relative error is ‖ours − reference‖ /
‖reference‖.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from wasmetal import load_model, open_device
from wasmetal.models.files import store

TYPES = "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "Q5_1", "Q4_0", "IQ4_NL", "IQ4_XS"
TEXT = "Hello 123 wörld, <|im_end|> and\n\n  more\tof it"
TOLERANCE = 1e-4
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{each}": f"self_attn.{each}_proj" for each in "qkv"},
    **{f"attn_{each}_norm": f"self_attn.{each}_norm" for each in "qk"},
    **{f"ffn_{each}": f"mlp.{each}_proj" for each in ("gate", "up", "down")},
}
"""GGUF's names of a layer's weights, and transformers'."""


def write_folder(folder: Path, seed: int) -> tuple[Any, Any]:
    """A random model and SmolLM2's tokenizer, as transformers saves them."""
    fields = GGUFReader(str(store.resolve("smollm2:135m"))).fields
    tokens, merges = ([bytes(f.parts[i]).decode() for i in f.data] for f in map(fields.get, _lists("tokens", "merges")))
    kinds = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ", 1)) for m in merges]))
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of])
    made.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 5, "max_position_embeddings": 2048}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    config = Qwen3Config(
        vocab_size=len(tokens), tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, **sizes, **heads
    )
    Qwen3ForCausalLM(config).to(torch.float16).save_pretrained(folder, max_shard_size="40MB")
    return tokenizer, Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def with_weights_of(model: Any, path: Path) -> Any:
    """The model with the weights of a GGUF file, expanded."""
    weights = {}
    for tensor in GGUFReader(str(path)).tensors:
        name, _ = tensor.name.rsplit(".", 1)
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))
        if name.startswith("blk."):
            _, number, which = name.split(".", 2)
            weights[f"model.layers.{number}.{NAMES[which]}.weight"] = values
        else:
            weights[{"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[name] + ".weight"] = values
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)  # noqa: PT018 (tied)
    return model


def error_of(path: Path, model: Any, tokenizer: Any, ids: list[int], device: str) -> float:
    """The relative error of the logits after ``ids``; infinite if the tokens of the text differ."""
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0, -1].numpy()
    with open_device(device, "exact") as opened, load_model(path, opened, context=256) as ours:
        if ours.tokenizer.encode(TEXT, parse_special=False) != tokenizer.encode(TEXT, split_special_tokens=True):
            return float("inf")
        logits = ours.logits()
        ours.session().forward(ids, logits)
        return float(np.linalg.norm(logits.numpy() - want) / np.linalg.norm(want))


def main() -> int:
    """Print a line for each file. 1 if one differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="its source, with convert_hf_to_gguf.py")
    parser.add_argument("--llama-quantize", type=Path, required=True, help="the program")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 30), help="of the weights; default: a new one"
    )
    options = parser.parse_args()
    print(f"seed {options.seed}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder, plain = Path(temporary, "folder"), Path(temporary, "F16.gguf")
        tokenizer, model = write_folder(folder, options.seed)
        ids = np.random.default_rng(options.seed).integers(0, 49152, 40).tolist()
        source = options.llama_cpp
        convert = [sys.executable, str(source / "convert_hf_to_gguf.py"), str(folder), "--outfile", str(plain)]
        path = os.pathsep.join(map(str, (source / "gguf-py", source)))
        environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        subprocess.run([*convert, "--outtype", "f16"], check=True, capture_output=True, env=environment)
        for name in ("folder", "F16", *TYPES):
            file = folder if name == "folder" else Path(temporary, f"{name}.gguf")
            if name in TYPES:
                subprocess.run(
                    [options.llama_quantize, "--pure", plain, file, name, "2"], check=True, capture_output=True
                )
                model = with_weights_of(model, file)
            error = error_of(file, model, tokenizer, ids, options.device)
            print(f"{name:8} {error:.1e}", flush=True)
            worst = max(worst, error)
    print(f"worst {worst:.1e}; at most {TOLERANCE:.0e} is allowed")
    return int(not worst <= TOLERANCE)


def _lists(*names: str) -> list[str]:
    return [f"tokenizer.ggml.{name}" for name in names]


if __name__ == "__main__":
    sys.exit(main())
