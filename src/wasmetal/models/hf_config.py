"""The configuration of a folder of Hugging Face in GGUF's terms: metadata.

What llama.cpp's ``convert_hf_to_gguf.py`` makes of ``config.json``. All of it is untrusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wasmetal.models.architectures.gpt_oss import PERIOD
from wasmetal.models.architectures.smollm3 import NOPE_INTERVAL
from wasmetal.models.files.model_file import FileMetadata
from wasmetal.models.hf_architectures import ARCHITECTURES, Architecture

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
    fixed = (architecture.activation, ("use_sliding_window", False))
    for key, missing, value in (*architecture.required, *((key, value, value) for key, value in fixed)):
        if (found := config.get(key, missing)) != value:
            raise file.error(f"{key} is {found!r}, which is not supported")
    if (found := config.get("quantization_config")) is not None:
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method is None or method != architecture.quantized:
            raise file.error(f"quantization_config is {found!r}, which is not supported")
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
    elif prefix == "gpt-oss":
        _check_windows(file, config)
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


def _check_windows(file: FileMetadata, config: Mapping[str, Any]) -> None:
    """Which layers see a window: only gpt-oss's own choice is supported."""
    layers = file.get("gpt-oss.block_count", int, 0)
    listed = config.get("layer_types")
    full = "full_attention"
    if listed is not None and listed != ["sliding_attention" if (i + 1) % PERIOD else full for i in range(layers)]:
        raise file.error(f"layer_types other than {full} in every {PERIOD}nd of {layers} layers are not supported")


def typed(file: FileMetadata, kind: type, name: str, value: Any) -> Any:
    """A value of the configuration, if it is of a type. Raises ModelError if not."""
    if type(value) is int and kind is float and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not kind:
        raise file.error(f"{name} should be of type {kind.__name__}, not {type(value).__name__}")
    return value
