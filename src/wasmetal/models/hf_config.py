"""The configuration of a folder of Hugging Face in GGUF's terms: metadata, and the names of tensors.

What llama.cpp's ``convert_hf_to_gguf.py`` makes of ``config.json``. All of it is untrusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wasmetal.models.architectures.smollm3 import NOPE_INTERVAL
from wasmetal.models.files.model_file import FileMetadata

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ATTENTION = {name: to for name, to in _LAYER.items() if not name.startswith("mlp.")}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
"""GGUF's name for each module outside of the layers."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """How folders of one ``model_type`` differ from GGUF files."""

    name: str
    """``general.architecture``."""
    modules: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    """GGUF's name for each module of a layer. What all experts have is named without their numbers."""
    reordered: bool = False
    """Whether GGUF files have the rows of queries and keys in another order: pairs that RoPE turns side by side."""
    windowed: bool = False
    """Whether ``sliding_window`` holds without ``use_sliding_window``."""
    activation: tuple[str, str] = ("hidden_act", "silu")
    """Its key, and the only value that is supported."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Further metadata of the type float: the configuration's key by GGUF's."""
    counts: Mapping[str, str] = field(default_factory=dict)
    """The same of the type int."""
    required: tuple[tuple[str, Any, Any], ...] = ()
    """Keys, what they mean if they are missing, and the only values that are supported."""
    head_dim: int | None = None
    """If the configuration does not say, and it is not hidden_size / num_attention_heads."""
    rope_theta: float = 10000.0
    """If the configuration does not say."""
    norms_less_one: bool = False
    """Whether 1 is to be added to the weights of norms."""


ARCHITECTURES = {
    "llama": Architecture("llama", reordered=True),
    "mistral": Architecture("llama", reordered=True, windowed=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", _LAYER | _QK_NORMS, head_dim=128),
    "mixtral": Architecture(
        "llama",
        _ATTENTION
        | {
            "block_sparse_moe.gate": "ffn_gate_inp",
            "block_sparse_moe.experts.w1": "ffn_gate_exps",
            "block_sparse_moe.experts.w2": "ffn_down_exps",
            "block_sparse_moe.experts.w3": "ffn_up_exps",
        },
        reordered=True,
        windowed=True,
        counts={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    ),
    "qwen3_moe": Architecture(
        "qwen3moe",
        _ATTENTION
        | _QK_NORMS
        | {"mlp.gate": "ffn_gate_inp"}
        | {f"mlp.experts.{kind}_proj": f"ffn_{kind}_exps" for kind in ("gate", "up", "down")},
        counts={
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        required=(("norm_topk_prob", False, True), ("decoder_sparse_step", 1, 1), ("mlp_only_layers", [], [])),
        head_dim=128,
    ),
    "smollm3": Architecture("smollm3", reordered=True, rope_theta=2000000.0),
    "granite": Architecture(
        "granite",
        reordered=True,
        numbers={
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "olmo2": Architecture(
        "olmo2", {name: to for name, to in _LAYER.items() if name != "input_layernorm"} | _QK_NORMS | _POST_NORMS
    ),
    "phi3": Architecture(
        "phi3", _LAYER | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}, windowed=True
    ),
    "gemma3_text": Architecture(
        "gemma3",
        _LAYER | _QK_NORMS | _POST_NORMS | {"pre_feedforward_layernorm": "ffn_norm"},
        windowed=True,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        numbers={
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        head_dim=256,
        rope_theta=1000000.0,
        norms_less_one=True,
    ),
}
"""What is supported, by ``model_type``."""

_NUMBERS: Mapping[str, tuple[str, type]] = {
    "context_length": ("max_position_embeddings", int),
    "embedding_length": ("hidden_size", int),
    "block_count": ("num_hidden_layers", int),
    "feed_forward_length": ("intermediate_size", int),
    "attention.head_count": ("num_attention_heads", int),
    "attention.head_count_kv": ("num_key_value_heads", int),
    "attention.key_length": ("head_dim", int),
    "attention.value_length": ("head_dim", int),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", float),
}


def read_config(file: FileMetadata, config: Mapping[str, Any]) -> Architecture:
    """Add the metadata that a configuration gives to a file's, RoPE's aside. Raises ModelError."""
    model_type = config.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise file.error(f"model_type is {model_type!r}; of folders, these are supported: {', '.join(ARCHITECTURES)}")
    fixed = (architecture.activation, ("quantization_config", None), ("use_sliding_window", False))
    for key, missing, value in (*architecture.required, *((key, value, value) for key, value in fixed)):
        if (found := config.get(key, missing)) != value:
            raise file.error(f"{key} is {found!r}, which is not supported")
    prefix = architecture.name
    file.fields["general.architecture"] = prefix
    wanted = dict(_NUMBERS) | {key: (name, float) for key, name in architecture.numbers.items()}
    wanted |= {key: (name, int) for key, name in architecture.counts.items()}
    # transformers 5 writes num_local_experts for all.
    given = {"head_dim": architecture.head_dim, "num_experts": config.get("num_local_experts")} | {
        key: value for key, value in config.items() if value is not None
    }
    for key, (name, kind) in wanted.items():
        if given.get(name) is not None:
            file.fields[f"{prefix}.{key}"] = typed(file, kind, name, given[name])
    if architecture.windowed and config.get("sliding_window") is not None:
        file.fields[f"{prefix}.attention.sliding_window"] = typed(file, int, "sliding_window", config["sliding_window"])
    if prefix == "gemma3":
        _read_gemma3(file, config)
    elif prefix == "smollm3":
        _check_positions(file, config)
    return architecture


def _read_gemma3(file: FileMetadata, config: Mapping[str, Any]) -> None:
    """Which layers see a window, and by what scores are divided."""
    pattern = "gemma3.attention.sliding_window_pattern"
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        if not set(map(str, kinds)) <= {"sliding_attention", "full_attention"}:
            raise file.error("layer_types has a kind that is not supported")
        file.fields[pattern] = np.array([kind == "sliding_attention" for kind in kinds])
    elif config.get("sliding_window_pattern") is not None:
        file.fields[pattern] = typed(file, int, "sliding_window_pattern", config["sliding_window_pattern"])
    scalar = typed(file, float, "query_pre_attn_scalar", config.get("query_pre_attn_scalar", 256))
    size = file.get("gemma3.attention.key_length", int, 256)
    heads = max(1, file.get("gemma3.attention.head_count", int, 1))
    # GGUF files of the largest model alone have scores divided by another number, which is not in their metadata.
    layers, width = (file.get(f"gemma3.{key}", int, 0) for key in ("block_count", "embedding_length"))
    if (scalar * heads != width) if layers == 62 else (scalar != size):
        raise file.error(f"query_pre_attn_scalar is {scalar!r}, which is not supported with heads of {size}")


def _check_positions(file: FileMetadata, config: Mapping[str, Any]) -> None:
    """Which layers have no RoPE: only SmolLM3's own choice is supported."""
    layers = file.get("smollm3.block_count", int, 0)
    listed, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval", NOPE_INTERVAL)
    if listed is None and interval == NOPE_INTERVAL:
        return
    if not isinstance(listed, list) or listed != [int((i + 1) % NOPE_INTERVAL != 0) for i in range(len(listed))]:
        raise file.error(f"layers without RoPE other than every {NOPE_INTERVAL}th are not supported")
    if len(listed) != layers:
        raise file.error(f"no_rope_layers has {len(listed)} entries for {layers} layers")


def typed(file: FileMetadata, kind: type, name: str, value: Any) -> Any:
    """A value of the configuration, if it is of a type. Raises ModelError if not."""
    if type(value) is int and kind is float and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not kind:
        raise file.error(f"{name} should be of type {kind.__name__}, not {type(value).__name__}")
    return value
