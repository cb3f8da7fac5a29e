"""Check every architecture against transformers, on small random models.

    python tests/reference/check_architectures.py [--device cpu]...

Needs torch and transformers (``pip install -e .[reference]``). Each model is transformers' own, initialised at random
in float32; its weights are written to a GGUF file, which wasmetal loads. Compared are the logits of a prompt and of
16 tokens after it, and the states of all tokens. Relative error is ‖ours − reference‖ / ‖reference‖, per step.
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
PROMPT, DECODED, CONTEXT = 23, 16, 64
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "gate_up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "router": "ffn_gate_inp",
    "sinks": "attn_sinks",
}
"""GGUF's name for each of transformers' modules."""
POST_NORMED = {"olmo2", "gemma3", "gpt-oss"}
"""Where GGUF has the name of transformers' ``post_attention_layernorm``: it is of attention's output there, but in
gpt-oss of the next input as elsewhere."""
REORDERED = {"llama", "smollm3", "granite"}
"""Whose q and k have RoPE pairs side by side in GGUF."""

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
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
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


def tiny(name: str, scaled: Rope | None = None, **options: Any) -> transformers.PreTrainedModel:
    """The architecture that transformers calls ``name``, with RoPE scaled so."""
    if scaled:
        options["rope_parameters"] = {"rope_theta": 10000.0, **scaled}
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(**{**SHAPE, **options})
    return getattr(transformers, f"{name}ForCausalLM")(config)


def longrope(original: int) -> Callable[[], transformers.PreTrainedModel]:
    factors = {"long_factor": np.linspace(1, 8, 8).tolist(), "short_factor": np.linspace(1, 2, 8).tolist()}
    scaled = {"rope_type": "longrope", "original_max_position_embeddings": original, **factors}
    return partial(tiny, "Phi3", scaled, original_max_position_embeddings=original)


MULTIPLIERS = {
    **{"embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.17, "logits_scaling": 5.0},
}
QWEN3MOE: dict[str, Any] = {
    **{"num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 48, "norm_topk_prob": True},
}
GPT_OSS: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "num_hidden_layers": 4, "sliding_window": 5},
    **{"num_local_experts": 6, "num_experts_per_tok": 3},
}
GEMMA3: dict[str, Any] = {"num_hidden_layers": 7, "sliding_window": 5, "head_dim": 16, "query_pre_attn_scalar": 16}
GEMMA3_LINEAR: dict[str, Rope] = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "llama": partial(tiny, "Llama"),
    **{f"llama {name}": partial(tiny, "Llama", scaled) for name, scaled in SCALED.items()},
    "llama mistral": partial(tiny, "Mistral", sliding_window=5),
    "qwen2": partial(tiny, "Qwen2", tie_word_embeddings=True),
    "qwen3": partial(tiny, "Qwen3", head_dim=24),
    "llama mixtral": partial(tiny, "Mixtral", num_local_experts=5, num_experts_per_tok=2),
    "qwen3moe": partial(tiny, "Qwen3Moe", head_dim=24, **QWEN3MOE),
    "gpt-oss": partial(tiny, "GptOss", SCALED["yarn"] | {"truncate": False}, **GPT_OSS),
    "qwen3 yarn": partial(tiny, "Qwen3", SCALED["yarn"], head_dim=16, tie_word_embeddings=True),
    "smollm3": partial(tiny, "SmolLM3", num_hidden_layers=5),
    "granite": partial(tiny, "Granite", **MULTIPLIERS),
    "olmo2": partial(tiny, "Olmo2"),
    "phi3": partial(tiny, "Phi3"),
    "phi3 partial": partial(tiny, "Phi3", {"rope_type": "default", "partial_rotary_factor": 0.5}, sliding_window=5),
    "phi3 longrope, short": longrope(CONTEXT),
    "phi3 longrope, long": longrope(16),
    "gemma3": partial(tiny, "Gemma3", **GEMMA3),
    "gemma3 linear": partial(tiny, "Gemma3", **GEMMA3, rope_parameters=GEMMA3_LINEAR),
}
"""Small random models of each architecture that wasmetal has. The first word is its name in GGUF."""


def neighbours_of(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from transformers' order, first halves and then second, to RoPE pairs side by side."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def add_rope(w: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    """What llama.cpp's convert_hf_to_gguf.py makes of ``rope_parameters``."""
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)  # of Gemma 3, whose other layers are as the architecture says
    w.add_rope_freq_base(rope["rope_theta"])
    w.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn", "longrope"):
        w.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
    if rope["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        longer = config.max_position_embeddings / original
        w.add_rope_scaling_attn_factors(np.sqrt(1 + np.log(longer) / np.log(original)))
        for kind in ("long", "short"):
            w.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))
    if rope["rope_type"] == "llama3":
        waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
        turns = rope["original_max_position_embeddings"] / waves
        smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        smooth = np.clip(smooth, 0, 1)
        w.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32))


def add_special(w: gguf.GGUFWriter, architecture: str, config: Any) -> None:
    """Metadata that not every architecture has."""
    if architecture == "granite":
        w.add_embedding_scale(config.embedding_multiplier)
        w.add_residual_scale(config.residual_multiplier)
        w.add_attention_scale(config.attention_multiplier)
        w.add_logit_scale(config.logits_scaling)
    if experts := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        w.add_expert_count(experts)
        w.add_expert_used_count(config.num_experts_per_tok)
        w.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))


def add_experts(w: gguf.GGUFWriter, architecture: str, block: str, name: str, values: NDArray[np.float32]) -> None:
    """Matrices and biases of all experts. Those of gate and up are one in transformers: rows of the one, then of the
    other; but in gpt-oss, whose matrices are transposed, they take turns."""
    name, kind = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
    if architecture == "gpt-oss" and kind == "weight":
        values = values.swapaxes(1, 2)
    if name == "down_proj":
        parts = {"down": values}
    elif architecture == "gpt-oss":
        parts = {"gate": values[:, 0::2], "up": values[:, 1::2]}
    else:
        parts = dict(zip(("gate", "up"), np.split(values, 2, axis=1), strict=True))
    for part, data in parts.items():
        mxfp4 = architecture == "gpt-oss" and kind == "weight"
        dtype = gguf.GGMLQuantizationType.MXFP4 if mxfp4 else gguf.GGMLQuantizationType.F32
        w.add_tensor(f"{block}.ffn_{part}_exps.{kind}", gguf.quants.quantize(data, dtype), raw_dtype=dtype)


def to_mxfp4(model: transformers.PreTrainedModel) -> None:
    """Round the matrices of gpt-oss's experts to what MXFP4 holds exactly, in blocks along what is added up."""
    kind = gguf.GGMLQuantizationType.MXFP4
    for name, parameter in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            rows = parameter.numpy().swapaxes(1, 2)
            rounded = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind).reshape(rows.shape)
            parameter.copy_(torch.from_numpy(rounded.swapaxes(1, 2).copy()))


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
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    add_rope(w, config, head_dim)
    if window := getattr(config, "sliding_window", None):
        w.add_sliding_window(window)
    add_special(w, architecture, config)
    w.add_vocab_size(config.vocab_size)
    add_tokenizer(w, vocabulary())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        *path_, module, kind = name.split(".")
        values = tensor.numpy().astype(np.float32)
        if module == "experts":
            add_experts(w, architecture, f"blk.{path_[2]}", kind, values)
            continue
        if module == "gate":
            module = "router"
        if kind == "sinks":
            module, kind = "sinks", "weight"
        renamed = NAMES[module]
        if architecture in POST_NORMED and module == "post_attention_layernorm":
            renamed = "post_attention_norm"
        if architecture in REORDERED and renamed in heads:
            values = neighbours_of(values, heads[renamed])
        if architecture == "gemma3" and renamed.endswith("norm"):
            values = values + 1
        block = f"blk.{path_[2]}." if "layers" in path_ else ""
        w.add_tensor(f"{block}{renamed}.{kind}", values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@torch.inference_mode()
def reference(model: transformers.PreTrainedModel, tokens: list[int]) -> tuple[NDArray[np.float32], ...]:
    """Logits [DECODED + 1, vocab] after the prompt and each token behind it; states [n, embedding] of all tokens."""
    given = torch.tensor([tokens])
    logits, states = model(given).logits[0, PROMPT - 1 :], model.base_model(given).last_hidden_state[0]
    return np.asarray(logits.numpy()), np.asarray(states.numpy())


def ours(path: Path, device: str, tokens: list[int]) -> tuple[NDArray[np.float32], ...]:
    from wasmetal.device import open_device
    from wasmetal.models import load_model
    from wasmetal.models.lm.heads import MOST_ROWS
    from wasmetal.models.lm.states import State

    with open_device(device) as opened, load_model(path, opened, context=CONTEXT) as model, model.session() as session:
        logits = model.logits()
        states = [State() for _ in tokens]
        for begin in range(0, len(tokens), MOST_ROWS):
            session.forward(tokens[begin : begin + MOST_ROWS], states[begin : begin + MOST_ROWS])
        session.truncate(0)
        rows = []
        for some in (tokens[:PROMPT], *([token] for token in tokens[PROMPT:])):
            session.forward(some, logits)
            rows.append(logits.numpy().copy())
    return np.stack(rows), np.stack([state.values for state in states])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", action="append", help="as for wasmetal; by default cpu")
    parser.add_argument("--only", default="", help="models whose names begin so")
    options = parser.parse_args()
    devices = options.device or ["cpu"]
    from wasmetal.models.architectures import ARCHITECTURES

    failed = sorted(ARCHITECTURES.keys() - {name.split()[0] for name in MODELS})
    for name in failed:
        print(f"{name}: no reference")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            if not name.startswith(options.only):
                continue
            torch.manual_seed(0)
            model = make().to(torch.float32).eval()
            with torch.no_grad():
                for parameter in (
                    p for n, p in model.named_parameters() if n.endswith(("bias", "norm.weight", "sinks"))
                ):
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
                if name == "gpt-oss":
                    to_mxfp4(model)
            path = Path(folder) / f"{name}.gguf"
            write_gguf(path, name.split()[0], model)
            tokens = np.random.default_rng(0).integers(4, SHAPE["vocab_size"], PROMPT + DECODED).tolist()
            want = reference(model, tokens)
            for device in devices:
                for what, mine, theirs in zip(("logits", "states"), ours(path, device, tokens), want, strict=True):
                    error = np.linalg.norm(mine - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
                    print(f"{name} on {device}: relative error of {what} at most {error.max():.1e}")
                    if not error.max() < TOLERANCE:
                        failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
