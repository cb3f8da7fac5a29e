"""A Llama whose rows are whole blocks of every type of weights, and which computes what a narrower one does.

Heads are added, whose weights are zero: so are their values, and what attention adds to the new elements of each row.
RMSNorm then divides the same sum of squares by more elements, which its weights and its epsilon make up for.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray

BLOCK = 256
"""Weights in the longest blocks of ggml: those of the K types."""
AXES = {
    "token_embd": ("", "width"),
    "attn_norm": ("width",),
    "attn_q": ("width", "width"),
    "attn_k": ("kv", "width"),
    "attn_v": ("kv", "width"),
    "attn_output": ("width", "width"),
    "ffn_norm": ("width",),
    "ffn_gate": ("", "width"),
    "ffn_up": ("", "width"),
    "ffn_down": ("width", ""),
    "output_norm": ("width",),
    "output": ("", "width"),
    "rope_freqs": ("",),
}
"""What grows of each tensor: the width of the model, or that of its keys and values."""


def pad(source: Path, target: Path) -> None:
    """Write the model of ``source``, a Llama in GGUF, to ``target`` in F16, padded.

    New heads follow the others in whole groups, so each head still meets the keys and values that it met. Raises
    ValueError if it is another architecture, has other tensors, or has a feed-forward network that would need padding.
    """
    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if (architecture := fields["general.architecture"]) != "llama":
        raise ValueError(f"{source} is a {architecture}: only a Llama can be padded")
    if (hidden := fields["llama.feed_forward_length"]) % BLOCK:
        raise ValueError(f"{source} has a feed-forward network of {hidden}, which is no multiple of {BLOCK}")
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    kv_heads = fields.get("llama.attention.head_count_kv", heads)
    step = math.lcm(BLOCK, width // kv_heads)
    wide = -(-width // step) * step
    more = {"": 0, "width": wide - width, "kv": (wide - width) * kv_heads // heads}
    scale = width / wide
    changed = {
        "general.file_type": LlamaFileType.MOSTLY_F16.value,
        "llama.embedding_length": wide,
        "llama.attention.head_count": heads * wide // width,
        "llama.attention.head_count_kv": kv_heads * wide // width,
        "llama.attention.layer_norm_rms_epsilon": fields["llama.attention.layer_norm_rms_epsilon"] * scale,
    }
    writer = GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):  # which the writer writes
            continue
        of = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(name, changed.get(name, fields[name]), field.types[0], of)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, _padded(tensor, more, math.sqrt(scale)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _padded(tensor: ReaderTensor, more: dict[str, int], norm: float) -> NDArray[np.floating]:
    name = tensor.name.removesuffix(".weight").split(".")[-1]
    if name not in AXES or not tensor.name.endswith(".weight"):
        raise ValueError(f"{tensor.name}: no tensor of a Llama that can be padded")
    values = dequantize(tensor.data, tensor.tensor_type)
    if name.endswith("norm"):
        values = values * np.float32(norm)
    values = np.pad(values, [(0, more[axis]) for axis in AXES[name]])
    return values.astype(np.float16) if values.ndim > 1 else values
