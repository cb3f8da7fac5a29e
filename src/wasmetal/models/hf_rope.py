"""RoPE as folders of Hugging Face configure it, in GGUF's terms: metadata, and tensors of factors.

transformers calls it ``rope_parameters``, ``rope_scaling`` before version 5; Gemma 3 has one for each kind of layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.models.files.model_file import FileMetadata
from wasmetal.models.hf_architectures import Architecture
from wasmetal.models.hf_config import typed

_KINDS = ("default", "linear", "llama3", "yarn", "longrope")
_LOCAL_BASE = 10000.0
"""Of Gemma 3's layers that see a window, if the configuration does not say."""
_MAX_PAIRS = 1 << 15

Add = Callable[[str, NDArray[np.float32]], None]


def read_rope(file: FileMetadata, config: Mapping[str, Any], architecture: Architecture, add: Add) -> None:
    """Add RoPE's metadata to a file's, and call ``add`` with the tensors that belong to it. Raises ModelError."""
    prefix = architecture.name
    found: Any = config.get("rope_parameters") or config.get("rope_scaling") or architecture.rope
    if prefix == "gemma3":
        found = _of_gemma3(file, config, found)
    kind = found.get("rope_type", found.get("type", "default")) if isinstance(found, dict) else found
    kind = "longrope" if kind == "su" else kind  # its name when Phi 3 was published
    if kind not in _KINDS or (kind == "longrope" and prefix != "phi3"):
        supported = ", ".join(each for each in _KINDS if each != "longrope" or prefix == "phi3")
        raise file.error(f"RoPE of the type {kind!r} is not supported; supported: {supported}")
    original = found.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    rope = {**found, "original_max_position_embeddings": original}

    def number(name: str) -> float:
        return float(typed(file, float, name, rope.get(name)))

    fields = {"freq_base": typed(file, float, "rope_theta", _given(found, config, "rope_theta", architecture))}
    size = _head(file, prefix)
    part = found.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    rotated = int(size * min(1.0, max(0.0, typed(file, float, "partial_rotary_factor", part))))
    if rotated != size:
        fields["dimension_count"] = rotated
    if kind in ("linear", "yarn"):
        fields |= {"scaling.type": kind, "scaling.factor": number("factor")}
    if kind == "yarn":
        fields |= _yarn(file, rope, architecture.yarn_whole_pairs)
    if original is not None and kind in ("yarn", "longrope"):
        fields["scaling.original_context_length"] = typed(file, int, "original_max_position_embeddings", original)
    if kind == "longrope":
        fields |= {"scaling.type": kind, "scaling.attn_factor": _longrope_magnitude(file, rope)}
        for name in ("long", "short"):
            add(f"rope_factors_{name}.weight", _factors(file, rope.get(f"{name}_factor"), f"{name}_factor"))
    file.fields |= {f"{prefix}.rope.{key}": value for key, value in fields.items()}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        add("rope_freqs.weight", _llama3(file, rotated, fields["freq_base"], [number(name) for name in names]))


def _given(found: Mapping[str, Any], config: Mapping[str, Any], name: str, architecture: Architecture) -> Any:
    return found.get(name, config.get(name, architecture.rope_theta))


def _of_gemma3(file: FileMetadata, config: Mapping[str, Any], found: Any) -> Any:
    """The parameters of the layers that see everything; the base of the others is added to the metadata."""
    local = config.get("rope_local_base_freq", _LOCAL_BASE)
    if isinstance(found, dict) and isinstance(found.get("full_attention"), dict):
        others = found.get("sliding_attention")
        found, others = found["full_attention"], others if isinstance(others, dict) else {}
        local = others.get("rope_theta", local)
        if others.get("rope_type", "default") != "default":
            raise file.error("scaled RoPE in layers with a window is not supported")
    file.fields["gemma3.rope.freq_base_swa"] = typed(file, float, "rope_local_base_freq", local)
    return found


def _head(file: FileMetadata, prefix: str) -> int:
    heads = max(1, file.get(f"{prefix}.attention.head_count", int, 1))
    size = file.get(f"{prefix}.attention.key_length", int, file.get(f"{prefix}.embedding_length", int, 0) // heads)
    if not 2 <= size <= 2 * _MAX_PAIRS:
        raise file.error("the parameters of RoPE are out of range")
    return size


def _yarn(file: FileMetadata, rope: Mapping[str, Any], whole_pairs: bool) -> dict[str, Any]:
    """What YaRN has besides its factor. Of magnitudes, the usual one is supported; of limits, either whole pairs or
    any, as the architecture has it."""
    usual = 0.1 * math.log(max(1.0, typed(file, float, "factor", rope.get("factor")))) + 1
    given = rope.get("attention_factor")
    same = given is None or math.isclose(typed(file, float, "attention_factor", given), usual, rel_tol=1e-4)
    if not same or rope.get("mscale") or rope.get("mscale_all_dim"):
        raise file.error("YaRN with a magnitude of its own is not supported")
    if (rope.get("truncate") is not False) != whole_pairs:
        limits = "that are not whole pairs" if whole_pairs else "that are whole pairs (truncate)"
        raise file.error(f"YaRN with limits {limits} is not supported for this model_type")
    return {
        f"scaling.yarn_{name}": typed(file, float, name, rope[name])
        for name in ("beta_fast", "beta_slow")
        if rope.get(name) is not None
    }


def _longrope_magnitude(file: FileMetadata, rope: Mapping[str, Any]) -> float:
    given = rope.get("attention_factor")
    if given is not None:
        return float(typed(file, float, "attention_factor", given))
    original = typed(file, int, "original_max_position_embeddings", rope["original_max_position_embeddings"])
    context = file.require("phi3.context_length", int)
    return math.sqrt(math.log(context) / math.log(original)) if context > original > 1 else 1.0


def _factors(file: FileMetadata, listed: Any, name: str) -> NDArray[np.float32]:
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_PAIRS:
        raise file.error(f"{name} is no list of factors")
    return np.array([typed(file, float, name, each) for each in listed], np.float32)


def _llama3(file: FileMetadata, size: int, base: float, numbers: list[float]) -> NDArray[np.float32]:
    """The divisors of Llama 3's scaling, for each pair."""
    factor, low, high, positions = numbers
    if high <= low or not all(1e-6 < number < 1e12 for number in (base, *numbers)):
        raise file.error("the parameters of RoPE are out of range")
    wavelengths = 2 * math.pi * base ** (np.arange(0, size - size % 2, 2) / size)
    smooth = np.clip((positions / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
