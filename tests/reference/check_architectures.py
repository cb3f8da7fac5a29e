"""Check every architecture against transformers, on small random models.

    python tests/reference/check_architectures.py [--device cpu]...

Needs torch and transformers (``pip install -e .[reference]``). Each model is transformers' own, initialised at random
in float32; its weights are written to a GGUF file, which wasmetal loads. Compared are the logits of a prompt and of
16 tokens after it. Relative error is ‖ours − reference‖ / ‖reference‖, per step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.models.tiny import add_tokenizer, vocabulary

TOLERANCE = 1e-3
PROMPT, DECODED = 23, 16
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
"""GGUF's name for each of transformers' modules."""

SHAPE: dict[str, Any] = {
    "vocab_size": len(vocabulary()),
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
    "attn_implementation": "eager",
}

Rope = dict[str, Any]
SCALED: dict[str, Rope] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


def llama(**options: Any) -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **options))


MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "llama": llama,
    **{
        f"llama {name}": partial(llama, rope_parameters={"rope_theta": 10000.0, **scaled})
        for name, scaled in SCALED.items()
    },
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True)),
}
"""Small random models of each architecture that wasmetal has. The first word is its name."""


def neighbours_of(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from transformers' order, first halves and then second, to RoPE pairs side by side."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def add_rope(w: gguf.GGUFWriter, config: Any) -> None:
    """What llama.cpp's convert_hf_to_gguf.py makes of ``rope_parameters``."""
    rope = config.rope_parameters
    w.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        head = config.hidden_size // config.num_attention_heads
        waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head, 2) / head)
        turns = rope["original_max_position_embeddings"] / waves
        smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        smooth = np.clip(smooth, 0, 1)
        w.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32))


def write_gguf(path: Path, architecture: str, model: transformers.PreTrainedModel) -> None:
    config = model.config
    w = gguf.GGUFWriter(path, architecture)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_rope(w, config)
    w.add_vocab_size(config.vocab_size)
    add_tokenizer(w, vocabulary())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        *path_, module, kind = name.split(".")
        values = tensor.numpy().astype(np.float32)
        if architecture == "llama" and NAMES[module] in heads:
            values = neighbours_of(values, heads[NAMES[module]])
        block = f"blk.{path_[2]}." if "layers" in path_ else ""
        w.add_tensor(f"{block}{NAMES[module]}.{kind}", values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@torch.inference_mode()
def reference(model: transformers.PreTrainedModel, tokens: list[int]) -> NDArray[np.float32]:
    """Logits [DECODED + 1, vocab] after the prompt and after each token behind it."""
    return np.asarray(model(torch.tensor([tokens])).logits[0, PROMPT - 1 :].numpy())


def ours(path: Path, device: str, tokens: list[int]) -> NDArray[np.float32]:
    from wasmetal.device import open_device
    from wasmetal.models import load_model

    with open_device(device) as opened, load_model(path, opened) as model, model.session() as session:
        logits = model.logits()
        rows = []
        for some in (tokens[:PROMPT], *([token] for token in tokens[PROMPT:])):
            session.forward(some, logits)
            rows.append(logits.numpy().copy())
    return np.stack(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", action="append", help="as for wasmetal; by default cpu")
    devices = parser.parse_args().device or ["cpu"]
    from wasmetal.models.architectures import ARCHITECTURES

    failed = sorted(ARCHITECTURES.keys() - {name.split()[0] for name in MODELS})
    for name in failed:
        print(f"{name}: no reference")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            torch.manual_seed(0)
            model = make().to(torch.float32).eval()
            with torch.no_grad():
                for parameter in (p for n, p in model.named_parameters() if n.endswith((".bias", "norm.weight"))):
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
            path = Path(folder) / f"{name}.gguf"
            write_gguf(path, name.split()[0], model)
            tokens = np.random.default_rng(0).integers(4, SHAPE["vocab_size"], PROMPT + DECODED).tolist()
            want = reference(model, tokens)
            for device in devices:
                error = np.linalg.norm(ours(path, device, tokens) - want, axis=1) / np.linalg.norm(want, axis=1)
                print(f"{name} on {device}: relative error at most {error.max():.1e}")
                if not error.max() < TOLERANCE:
                    failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
