"""The forward pass of Llama and Qwen2 in NumPy float64, written for clarity alone and sharing no code with wasmetal."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def logits_of(path: Path, tokens: list[int]) -> Array:
    """Logits [tokens, vocab] after each token."""
    file = gguf.GGUFReader(path)
    weights: dict[str, Array] = {
        t.name.removesuffix(".weight"): gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)
        for t in file.tensors
    }

    architecture = file.fields["general.architecture"].contents()

    def field(name: str, default: Any = None) -> Any:
        found = file.fields.get(f"{architecture}.{name}")
        return found.contents() if found else default

    heads, kv_heads, dim = (field(n) for n in ("attention.head_count", "attention.head_count_kv", "embedding_length"))
    head_dim = field("attention.key_length", dim // heads)
    count = len(tokens)
    causal = np.tril(np.ones((count, count), bool))

    def norm(x: Array, name: str) -> Array:
        epsilon = field("attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weights[name]

    def yarn(frequency: Array) -> NDArray[np.complex128]:
        """Turns by YaRN. Where its paper has ramps over how often a pair turns in the original context, from once to 32
        times, its authors' code and all models since have ramps over the pairs' numbers, between whole ones."""
        turns = frequency * field("rope.scaling.original_context_length") / (2 * np.pi)
        first, last = np.interp(-np.log([32, 1]), -np.log(turns), np.arange(len(turns)))
        kept = 1 - np.clip((np.arange(len(turns)) - np.floor(first)) / (np.ceil(last) - np.floor(first)), 0, 1)
        factor = field("rope.scaling.factor")
        mixed = kept * frequency + (1 - kept) * frequency / factor
        return (0.1 * np.log(factor) + 1) * np.exp(1j * np.arange(count)[:, None] * mixed)[:, None]

    def rotate(x: Array) -> Array:
        """x [tokens, heads, head_dim]: each pair is a complex number, turned by its position's angle.

        Pairs are (2i, 2i + 1) in a llama, (i, i + head_dim / 2) in a qwen2.
        """
        frequency = field("rope.freq_base") ** (-np.arange(0, head_dim, 2) / head_dim)
        if field("rope.scaling.type") == "yarn":
            turn = yarn(frequency)
        else:
            frequency = frequency / field("rope.scaling.factor", 1.0) / weights.get("rope_freqs", 1.0)
            turn = np.exp(1j * np.arange(count)[:, None] * frequency)[:, None]
        if architecture == "qwen2":
            half = head_dim // 2
            turned = (x[..., :half] + 1j * x[..., half:]) * turn
            return np.concatenate([turned.real, turned.imag], axis=-1)
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    x = weights["token_embd"][tokens]
    for i in range(field("block_count")):
        w = {name: weights[f"blk.{i}.{name}"] for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        h = norm(x, f"blk.{i}.attn_norm")
        b = [weights.get(f"blk.{i}.attn_{kind}.bias", 0.0) for kind in "qkv"]
        q = rotate((h @ w["attn_q"].T + b[0]).reshape(count, heads, head_dim))
        k = rotate((h @ w["attn_k"].T + b[1]).reshape(count, kv_heads, head_dim))
        v = (h @ w["attn_v"].T + b[2]).reshape(count, kv_heads, head_dim)
        attended = np.empty((count, heads, head_dim))
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = np.where(causal, q[:, head] @ k[:, shared].T / np.sqrt(head_dim), -np.inf)
            probabilities = np.exp(scores - scores.max(axis=-1, keepdims=True))
            attended[:, head] = probabilities / probabilities.sum(axis=-1, keepdims=True) @ v[:, shared]
        x = x + attended.reshape(count, -1) @ w["attn_output"].T

        h = norm(x, f"blk.{i}.ffn_norm")
        gate, up = h @ weights[f"blk.{i}.ffn_gate"].T, h @ weights[f"blk.{i}.ffn_up"].T
        x = x + gate / (1 + np.exp(-gate)) * up @ weights[f"blk.{i}.ffn_down"].T
    return norm(x, "output_norm") @ weights.get("output", weights["token_embd"]).T


def relative_error(ours: NDArray[Any], reference: NDArray[Any]) -> float:
    """‖ours − reference‖ / ‖reference‖."""
    return float(np.linalg.norm(ours.astype(np.float64) - reference) / np.linalg.norm(reference))
