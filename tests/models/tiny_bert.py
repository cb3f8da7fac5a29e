"""A tiny random BERT in GGUF, and its forward pass in NumPy float64, which shares no code with wasmetal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from tests.models.tiny import weights

WORDS = ["▁a", "▁b", "▁c", "▁the", "▁world", "a", "b", "c", "ld", "▁,", "▁["]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
CLS, SEP = 2, 3

_erf = np.vectorize(math.erf, otypes=[float])


def add_tokenizer(w: gguf.GGUFWriter) -> None:
    w.add_tokenizer_model("bert")
    w.add_token_list(TOKENS)
    w.add_token_types([3, 2, 3, 3] + [1] * len(WORDS))
    w.add_unk_token_id(1)
    w.add_uint32("tokenizer.ggml.cls_token_id", CLS)
    w.add_sep_token_id(SEP)
    w.add_token_type_count(2)


def write_tiny_bert(
    path: Path, *, qtype: str = "F32", pooling: int | None = 1, context: int = 80, blocks: int = 2, **more: Any
) -> Path:
    """Write the file and return its path. ``more``: metadata in place of what is usual."""
    dim, hidden, heads = 96, 160, 6
    w = gguf.GGUFWriter(path, "bert")
    w.add_context_length(context)
    w.add_embedding_length(dim)
    w.add_block_count(blocks)
    w.add_feed_forward_length(hidden)
    w.add_head_count(more.get("heads", heads))
    w.add_layer_norm_eps(1e-12)
    w.add_causal_attention(more.get("causal", False))
    if pooling is not None:
        w.add_pooling_type(gguf.PoolingType(pooling))
    add_tokenizer(w)
    rng = np.random.default_rng(7)
    kind = gguf.GGMLQuantizationType[qtype]

    def matrix(name: str, rows: int, columns: int, scale: float = 3.0) -> None:
        if qtype in ("F32", "F16"):
            values = scale * rng.standard_normal((rows, columns)).astype(np.float32) / np.sqrt(np.float32(columns))
            w.add_tensor(name, values if qtype == "F32" else values.astype(np.float16))
        else:
            w.add_tensor(name, weights(rng, qtype, rows, columns), raw_dtype=kind)

    def vector(name: str, width: int) -> None:
        values = 0.1 * rng.standard_normal(width).astype(np.float32)
        w.add_tensor(name, values if name.endswith("bias") else 1 + values)

    matrix("token_embd.weight", len(TOKENS), dim)
    matrix("position_embd.weight", context, dim)
    w.add_tensor("token_types.weight", rng.standard_normal((2, dim)).astype(np.float32) / 4)
    for part in ("weight", "bias"):
        vector(f"token_embd_norm.{part}", dim)
    for i in range(blocks):
        shapes = {f"attn_{name}": (dim, dim) for name in ("q", "k", "v", "output")}
        for name, shape in (shapes | {"ffn_up": (hidden, dim), "ffn_down": (dim, hidden)}).items():
            matrix(f"blk.{i}.{name}.weight", *shape)
            vector(f"blk.{i}.{name}.bias", shape[0])
        for norm in ("attn_output_norm", "layer_output_norm"):
            for part in ("weight", "bias"):
                vector(f"blk.{i}.{norm}.{part}", dim)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def embedding_of(path: Path, tokens: Sequence[int], pooling: str) -> NDArray[np.float64]:
    """The vector of a text with these tokens, of length 1."""
    file = gguf.GGUFReader(path)
    t = {each.name: dequantize(each.data, each.tensor_type).astype(np.float64) for each in file.tensors}
    heads = file.fields["bert.attention.head_count"].contents()

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        apart = x - x.mean(axis=1, keepdims=True)
        return apart / np.sqrt((apart**2).mean(axis=1, keepdims=True) + 1e-12) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def project(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    x = t["token_embd.weight"][list(tokens)] + t["position_embd.weight"][: len(tokens)] + t["token_types.weight"][0]
    x = norm(x, "token_embd_norm")
    for i in range(file.fields["bert.block_count"].contents()):
        block = f"blk.{i}"
        q, k, v = (project(x, f"{block}.attn_{n}").reshape(len(x), heads, -1).swapaxes(0, 1) for n in "qkv")
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2])
        e = np.exp(scores - scores.max(axis=2, keepdims=True))
        attended = (e / e.sum(axis=2, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)
        x = norm(x + project(attended, f"{block}.attn_output"), f"{block}.attn_output_norm")
        up = project(x, f"{block}.ffn_up")
        x = norm(x + project(up * (1 + _erf(up / math.sqrt(2))) / 2, f"{block}.ffn_down"), f"{block}.layer_output_norm")
    of = x.mean(axis=0) if pooling == "mean" else x[0]
    return of / np.linalg.norm(of)
