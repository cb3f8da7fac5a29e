"""A tiny model as a folder of Hugging Face, made of a GGUF file's."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from tests.models.tiny import CHAT_TEMPLATE, CONTROL, MERGES, vocabulary

MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_MODULES = {
    "qwen3": {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
OTHER_MODULES["olmo2"] = OTHER_MODULES["qwen3"] | {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OTHER_MODULES["gemma3"] = OTHER_MODULES["olmo2"] | {"ffn_norm": "pre_feedforward_layernorm"}
OTHER_MODULES["qwen3moe"] = OTHER_MODULES["qwen3"] | {
    "ffn_gate_inp": "mlp.gate",
    **{f"ffn_{kind}_exps": f"mlp.experts.{{}}.{kind}_proj" for kind in ("gate", "up", "down")},
}
OTHER_MODULES["gpt-oss"] = {
    "attn_sinks": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    "post_attention_norm": "post_attention_layernorm",
}
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    **{
        f"ffn_{kind}_exps": f"block_sparse_moe.experts.{{}}.{to}"
        for kind, to in zip(("gate", "down", "up"), ("w1", "w2", "w3"), strict=True)
    },
}
MODEL_TYPES = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}
REORDERED = ("llama", "smollm3", "granite")
TYPES = {"float32": "F32", "float16": "F16", "uint8": "U8", "int64": "I64"}


def write_folder(folder: Path, source: Path, files: int = 1) -> Path:
    """The model of a GGUF file of floats, its weights in so many files."""
    folder.mkdir()
    reader = gguf.GGUFReader(source)

    def field(name: str) -> Any:
        found = reader.fields.get(f"{architecture}.{name}")
        return found.contents() if found else None

    architecture = reader.fields["general.architecture"].contents()
    heads = {"attn_q": field("attention.head_count"), "attn_k": field("attention.head_count_kv")}
    mixtral = field("expert_count") and architecture == "llama"
    modules = MODULES | OTHER_MODULES.get(architecture, {}) | (MIXTRAL if mixtral else {})
    tensors: dict[str, NDArray[Any]] = {}
    if architecture == "gpt-oss":
        tensors = joined_experts({tensor.name: tensor for tensor in reader.tensors})
    for tensor in reader.tensors:
        *block, module, kind = tensor.name.split(".")
        if (not block and module.startswith("rope_")) or (architecture == "gpt-oss" and module.endswith("_exps")):
            continue
        values = np.array(tensor.data)
        if architecture in REORDERED and module in heads:  # from pairs side by side to halves
            values = values.reshape(heads[module], -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if architecture == "gemma3" and module.endswith("norm"):
            values = values - np.float32(1)
        name = modules[module] if module == "attn_sinks" else f"{modules[module]}.{kind}"
        name = f"model.layers.{block[1]}.{name}" if block else name
        if module.endswith("_exps"):
            tensors |= {name.format(number): each for number, each in enumerate(values)}
        else:
            tensors[name] = values
    (folder / "config.json").write_text(json.dumps(config_of(reader, architecture, field, tensors)))
    write_weights(folder, tensors, files)
    write_tokenizer(folder)
    return folder


def config_of(
    reader: gguf.GGUFReader, architecture: str, field: Callable[[str], Any], tensors: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """The configuration of a GGUF file's model."""
    experts = field("expert_count")
    mixtral = experts and architecture == "llama"
    config = {
        "model_type": MODEL_TYPES.get(architecture, architecture),
        "hidden_act": "silu",
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "max_position_embeddings": field("context_length"),
        "num_attention_heads": field("attention.head_count"),
        "num_hidden_layers": field("block_count"),
        "num_key_value_heads": field("attention.head_count_kv"),
        "head_dim": field("rope.dimension_count"),
        "rms_norm_eps": 1e-5,
        "rope_theta": field("rope.freq_base"),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "vocab_size": len(vocabulary()),
    }
    if window := field("attention.sliding_window"):
        config |= {"sliding_window": window}
        if architecture == "llama":
            config["model_type"] = "mistral"
    if experts:
        config |= expert_config(field, bool(mixtral), architecture == "gpt-oss")
    if architecture == "granite":
        config |= {"embedding_multiplier": 3.0, "residual_multiplier": 0.3}
        config |= {"attention_multiplier": 0.17, "logits_scaling": 5.0}
    if architecture == "gemma3":
        kinds = [("full" if i % 2 else "sliding") + "_attention" for i in range(config["num_hidden_layers"])]
        config |= {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": config["head_dim"]}
        config |= {"layer_types": kinds, "rope_local_base_freq": 10000.0}
    if scaling := field("rope.scaling.type"):
        config["rope_scaling"] = {"rope_type": scaling, "factor": field("rope.scaling.factor")} | {
            "original_max_position_embeddings": field("rope.scaling.original_context_length")
        }
    if architecture == "gpt-oss":
        config["rope_scaling"] = {**config.get("rope_scaling", {"rope_type": "default"}), "truncate": False}
        config["swiglu_limit"] = 7.0
        if any("_blocks" in name for name in tensors):
            config["quantization_config"] = {"quant_method": "mxfp4"}
    if scaling == "longrope":
        factors = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if "factors" in tensor.name}
        config["rope_scaling"] |= {"attention_factor": field("rope.scaling.attn_factor")} | {
            f"{name}_factor": factors[f"rope_factors_{name}.weight"] for name in ("long", "short")
        }
    return config


def write_weights(folder: Path, tensors: dict[str, NDArray[Any]], files: int) -> None:
    """The tensors, in so many files."""
    names = list(tensors)
    if files == 1:
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
    else:
        places = {name: f"model-{i % files + 1:05}-of-{files:05}.safetensors" for i, name in enumerate(names)}
        for file in set(places.values()):
            part = {name: tensors[name] for name in names if places[name] == file}
            (folder / file).write_bytes(safetensors(part))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def joined_experts(tensors: dict[str, gguf.ReaderTensor]) -> dict[str, NDArray[Any]]:
    """The experts of gpt-oss as its folders have them: those of gate and up take turns, floats are transposed."""
    joined = {}
    for name in [name for name in tensors if name.endswith("down_exps.weight")]:
        block = name.removesuffix("down_exps.weight")
        module = f"model.layers.{block.split('.')[1]}.mlp.experts"
        for to, kinds in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            parts = [tensors[f"{block}{kind}_exps.weight"] for kind in kinds]
            rows = np.stack([np.array(part.data) for part in parts], axis=2)
            rows = rows.reshape(len(rows), -1, rows.shape[-1])
            if parts[0].tensor_type is gguf.GGMLQuantizationType.MXFP4:
                joined |= apart(f"{module}.{to}", rows)
            else:
                joined[f"{module}.{to}"] = np.ascontiguousarray(rows.swapaxes(1, 2))
            biases = [np.array(tensors[f"{block}{kind}_exps.bias"].data) for kind in kinds]
            joined[f"{module}.{to}_bias"] = np.stack(biases, axis=2).reshape(len(rows), -1)
    return joined


def apart(name: str, rows: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """ggml's MXFP4 as a folder's: scales by themselves, and weights that are neighbours in a byte."""
    blocks = rows.reshape(*rows.shape[:2], -1, 17)
    weights = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
    pairs = weights[..., 0::2] | weights[..., 1::2] << 4
    return {f"{name}_blocks": pairs, f"{name}_scales": np.ascontiguousarray(blocks[..., 0])}


def expert_config(field: Callable[[str], Any], mixtral: bool, gpt_oss: bool) -> dict[str, Any]:
    """The keys of a mixture."""
    used = {"num_experts_per_tok": field("expert_used_count")}
    width = field("expert_feed_forward_length")
    if mixtral:
        return used | {"model_type": "mixtral", "num_local_experts": field("expert_count")}
    if gpt_oss:
        return used | {"num_local_experts": field("expert_count"), "intermediate_size": width}
    return used | {"num_experts": field("expert_count"), "moe_intermediate_size": width, "norm_topk_prob": True}


def safetensors(tensors: dict[str, NDArray[Any]]) -> bytes:
    """A file with these tensors, as the format's description has it."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in tensors.items():
        end = len(data) + values.nbytes
        header[name] = {
            "dtype": TYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [len(data), end],
        }
        data += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def write_tokenizer(folder: Path, pattern: str | None = None) -> None:
    """The tokenizer of the tiny models, and their template; ``pattern``: splits by it, and not as GPT-2 does."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in MERGES]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles | {"add_bos_token": False}))
