"""The forward pass of every architecture in NumPy float64, written for clarity and sharing no code with wasmetal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def logits_of(path: Path, tokens: list[int], *, long: bool = False) -> Array:
    """Logits [tokens, vocab] after each token. ``long``: for a context longer than the original one (longrope)."""
    return run(path, tokens, long)[1]


def states_of(path: Path, tokens: list[int]) -> Array:
    """The normed rows [tokens, embedding] that logits are made of."""
    return run(path, tokens, False)[0]


def run(path: Path, tokens: list[int], long: bool) -> tuple[Array, Array]:
    """States and logits after each token."""
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
    count, head_dim = len(tokens), field("attention.key_length", dim // heads)

    def norm(x: Array, name: str) -> Array:
        """As it is without such a norm. A norm narrower than rows is of each part of its width."""
        if name not in weights:
            return x
        shape, x = x.shape, x.reshape(*x.shape[:-1], -1, len(weights[name]))
        epsilon = field("attention.layer_norm_rms_epsilon")
        return (x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weights[name]).reshape(shape)

    x = weights["token_embd"][tokens] * field("embedding_scale", dim**0.5 if architecture == "gemma3" else 1.0)
    residual = field("residual_scale", 1.0)
    for i in range(field("block_count")):
        w = {name.removeprefix(f"blk.{i}."): tensor for name, tensor in weights.items() if name.startswith(f"blk.{i}.")}
        local = architecture == "gemma3" and (i + 1) % field("attention.sliding_window_pattern") != 0
        window = field("attention.sliding_window", count) if local or architecture != "gemma3" else count
        if architecture == "gpt-oss" and i % 2 == 1:
            window = count
        if "attn_qkv" in w:
            widths = np.cumsum([heads * head_dim, kv_heads * head_dim])
            w["attn_q"], w["attn_k"], w["attn_v"] = np.split(w["attn_qkv"], widths)
            w["ffn_gate"], w["ffn_up"] = np.split(w["ffn_up"], 2)

        h = norm(x, f"blk.{i}.attn_norm")
        q, k, v = (h @ w[f"attn_{kind}"].T + w.get(f"attn_{kind}.bias", 0.0) for kind in "qkv")
        q, k = norm(q, f"blk.{i}.attn_q_norm"), norm(k, f"blk.{i}.attn_k_norm")
        q, k, v = (part.reshape(count, -1, head_dim) for part in (q, k, v))
        if architecture != "smollm3" or (i + 1) % 4 != 0:
            q, k = (rotate(part, architecture, field, weights, local, long) for part in (q, k))
        attended = attend(q, k, v, field("attention.scale", head_dim**-0.5), window, w.get("attn_sinks"))
        output = attended @ w["attn_output"].T + w.get("attn_output.bias", 0.0)
        if architecture == "gpt-oss":  # whose norm of that name is of the network's input
            x = x + output
            h = norm(x, f"blk.{i}.post_attention_norm")
        else:
            x = x + residual * norm(output, f"blk.{i}.post_attention_norm")
            h = norm(x, f"blk.{i}.ffn_norm")
        made = (
            mixture(h, w, field("expert_used_count")) if "ffn_gate_inp" in w else dense(h, w, architecture == "gemma3")
        )
        x = x + residual * norm(made, f"blk.{i}.post_ffw_norm")
    states = norm(x, "output_norm")
    return states, states @ weights.get("output", weights["token_embd"]).T / field("logit_scale", 1.0)


def rotate(
    x: Array, architecture: str, field: Callable[..., Any], weights: dict[str, Array], local: bool, long: bool
) -> Array:
    """x [tokens, heads, head_dim]: each pair is a complex number, turned by its position's angle.

    Pairs are (2i, 2i + 1) where the converter to GGUF has reordered rows, else (i, i + head_dim / 2).
    """
    count, head_dim = x.shape[0], x.shape[2]
    base = 1e4 if local else field("rope.freq_base")
    frequency = base ** (-np.arange(0, head_dim, 2) / head_dim)
    scaling, factor, length = "none" if local else field("rope.scaling.type"), field("rope.scaling.factor"), 1.0
    if scaling == "linear":
        frequency = frequency / factor
    elif scaling == "yarn":
        turns = frequency * field("rope.scaling.original_context_length") / (2 * np.pi)
        kept = yarn(turns, whole=architecture != "gpt-oss")
        frequency, length = kept * frequency + (1 - kept) * frequency / factor, 0.1 * np.log(factor) + 1
    elif scaling == "longrope":
        frequency, length = frequency / weights[f"rope_factors_{'long' if long else 'short'}"], 1.2
    turn = length * np.exp(1j * np.arange(count)[:, None] * frequency / weights.get("rope_freqs", 1.0))[:, None]
    if architecture not in ("llama", "smollm3", "granite"):
        turned = (x[..., : head_dim // 2] + 1j * x[..., head_dim // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def yarn(turns: Array, whole: bool) -> Array:
    """How much of each pair's frequency YaRN keeps, by how often the pair turns in the original context: all from 32
    times, nothing below once. In between the paper has a ramp over the turns; its authors' code, and all models since,
    have one over the pairs' numbers, in most of them between whole ones."""
    numbers = np.arange(len(turns))
    first, last = np.interp(-np.log([32, 1]), -np.log(turns), numbers)
    if whole:
        first, last = np.floor(first), np.ceil(last)
    return 1 - np.clip((numbers - first) / (last - first), 0, 1)


def attend(q: Array, k: Array, v: Array, scale: float, window: int, sinks: Array | None) -> Array:
    """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], to [tokens, heads * head_dim]."""
    count, heads = q.shape[:2]
    ago = np.arange(count)[:, None] - np.arange(count)
    attended = np.empty(q.shape)
    for head in range(heads):
        shared = head // (heads // k.shape[1])
        scores = np.where((ago >= 0) & (ago < window), q[:, head] @ k[:, shared].T * scale, -np.inf)
        if sinks is not None:
            scores = np.column_stack([scores, np.full(count, sinks[head])])
        probabilities = np.exp(scores - scores.max(axis=-1, keepdims=True))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        attended[:, head] = probabilities[:, :count] @ v[:, shared]
    return attended.reshape(count, -1)


def dense(h: Array, w: dict[str, Array], with_gelu: bool) -> Array:
    gate, up = (h @ w[f"ffn_{kind}"].T for kind in ("gate", "up"))
    return (up * (gelu(gate) if with_gelu else silu(gate))) @ w["ffn_down"].T


def mixture(h: Array, w: dict[str, Array], used: int) -> Array:
    """One row and expert at a time."""
    made, zeros = np.zeros(h.shape), np.zeros((len(w["ffn_gate_inp"]), 1))
    for row, scores in enumerate(h @ w["ffn_gate_inp"].T + w.get("ffn_gate_inp.bias", 0.0)):
        probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        best = np.argsort(-probabilities)[:used]
        for expert in best:
            bias = {kind: w.get(f"ffn_{kind}_exps.bias", zeros)[expert] for kind in ("gate", "up", "down")}
            gate, up = (w[f"ffn_{kind}_exps"][expert] @ h[row] + bias[kind] for kind in ("gate", "up"))
            gated = swiglu_oai(gate, up) if "attn_sinks" in w else silu(gate) * up
            share = probabilities[expert] / probabilities[best].sum()
            made[row] += share * (w["ffn_down_exps"][expert] @ gated + bias["down"])
    return made


def swiglu_oai(gate: Array, up: Array) -> Array:
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def relative_error(ours: NDArray[Any], reference: NDArray[Any]) -> float:
    """‖ours − reference‖ / ‖reference‖."""
    return float(np.linalg.norm(ours.astype(np.float64) - reference) / np.linalg.norm(reference))
