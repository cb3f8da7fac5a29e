"""The architectures of folders of Hugging Face, by ``model_type``: how each differs from a Llama, and from GGUF files.

The names of tensors are those of llama.cpp's ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
_MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BERT = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_BERT_MODEL = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}

_PART = re.compile(r"(.+)\.(weight|bias|gamma|beta)")
_PARTS = {"gamma": "weight", "beta": "bias"}
"""Names that norms' parts had in TensorFlow."""
_IN_LAYER = re.compile(r"(\d{1,6})\.(.+)")
_EXPERT = re.compile(r"(.+\.experts)\.(\d{1,4})(\..+)")


@dataclass(frozen=True, slots=True)
class Architecture:
    """How folders of one ``model_type`` differ from GGUF files."""

    name: str
    """``general.architecture``."""
    modules: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    """GGUF's name for each module of a layer. What all experts have is named without their numbers."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """The same for parameters of a layer that are named without ``weight`` or ``bias``."""
    model: Mapping[str, str] = field(default_factory=lambda: _MODEL)
    """GGUF's name for each module outside of the layers."""
    layers: str = "model.layers."
    """What is before a layer's number."""
    prefix: str = ""
    """What may be before every name: a model that was trained for more has this one as a part."""
    unused: tuple[str, ...] = ()
    """How the names of tensors begin that change nothing here."""
    joined_experts: bool = False
    """Whether the matrices of all experts are one tensor, in gpt-oss's order."""
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
    rope: Mapping[str, Any] | None = field(default_factory=dict)
    """RoPE's parameters, if the configuration has none; None: there is no RoPE."""
    yarn_whole_pairs: bool = True
    """Whether YaRN's ramp begins and ends at whole pairs (``truncate``)."""
    quantized: str | None = None
    """The only ``quant_method`` that is supported."""
    norms_less_one: bool = False
    """Whether 1 is to be added to the weights of norms."""

    def gguf_name(self, name: str) -> tuple[str | None, int | None]:
        """GGUF's name for a tensor, None if it has none; and the number of the expert that it is of, if it is of one.

        ``name``: without ``prefix``.
        """
        modules, module, part, block, expert = self.model, name, "weight", "", None
        if name.startswith(self.layers) and (found := _IN_LAYER.fullmatch(name, len(self.layers))):
            modules, block, module = self.modules, f"blk.{int(found[1])}.", found[2]
        if block and module in self.parameters:
            modules = self.parameters
        elif found := _PART.fullmatch(module):
            module, part = found[1], _PARTS.get(found[2], found[2])
        else:
            return None, None
        if block and (one := _EXPERT.fullmatch(module)):
            module, expert = one[1] + one[3], int(one[2])
        to = modules.get(module)
        if to is None or to.endswith("_exps") != (expert is not None):
            return None, None
        return f"{block}{to}.{part}", expert


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
    "gpt_oss": Architecture(
        "gpt-oss",
        _ATTENTION
        | {
            "post_attention_layernorm": "post_attention_norm",
            "mlp.router": "ffn_gate_inp",
        },
        parameters={"self_attn.sinks": "attn_sinks"},
        joined_experts=True,
        windowed=True,
        counts={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        required=(("swiglu_alpha", 1.702, 1.702), ("swiglu_limit", 7.0, 7.0), ("attention_bias", True, True)),
        head_dim=64,
        rope_theta=150000.0,
        rope={"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096},
        yarn_whole_pairs=False,
        quantized="mxfp4",
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
    "bert": Architecture(
        "bert",
        _BERT,
        model=_BERT_MODEL,
        layers="encoder.layer.",
        prefix="bert.",
        unused=("pooler.", "cls."),
        activation=("hidden_act", "gelu"),
        numbers={"attention.layer_norm_epsilon": "layer_norm_eps"},
        required=(
            ("position_embedding_type", "absolute", "absolute"),
            ("is_decoder", False, False),
            ("add_cross_attention", False, False),
        ),
        rope=None,
    ),
}
"""What is supported, by ``model_type``."""
