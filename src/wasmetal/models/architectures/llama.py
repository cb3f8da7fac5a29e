"""The architecture ``llama``: Llama 1 to 3, SmolLM2, Mistral, and what else is built like them.

H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files.gguf import GGUFFile, GGUFTensor
from wasmetal.models.lm.kv_cache import KVCache
from wasmetal.models.weights import Weight, Weights
from wasmetal.ops import (
    DType,
    Recorder,
    Tensor,
    attention,
    copy_row,
    embed,
    kv_append,
    rms_norm,
    rope,
    silu_mul,
)


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """A model's dimensions, as its metadata give them."""

    context_length: int
    """Positions that the model was trained on."""
    embedding_length: int
    block_count: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    head_dim: int
    vocab_size: int
    norm_epsilon: float
    rope_dimension_count: int
    """Elements of each head that carry the position."""
    rope_freq_base: float
    rope_scaling_factor: float
    """Positions are divided by this (linear scaling)."""

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> LlamaConfig:
        """Read and check the metadata. Raises ModelError."""

        def count(name: str, default: int | None = None) -> int:
            key = f"llama.{name}"
            value = file.require(key, int) if default is None else file.get(key, int, default)
            if not 1 <= value < 2**31:
                raise file.error(f"{key} is {value}")
            return value

        def positive(name: str, default: float | None = None) -> float:
            key = f"llama.{name}"
            value = file.require(key, float) if default is None else file.get(key, float, default)
            if not (math.isfinite(value) and value > 0):
                raise file.error(f"{key} is {value}")
            return value

        embedding, heads = count("embedding_length"), count("attention.head_count")
        head_dim = count("attention.key_length", max(1, embedding // heads))
        config = cls(
            context_length=count("context_length"),
            embedding_length=embedding,
            block_count=count("block_count"),
            feed_forward_length=count("feed_forward_length"),
            head_count=heads,
            head_count_kv=count("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=len(file.require("tokenizer.ggml.tokens", list)),
            norm_epsilon=positive("attention.layer_norm_rms_epsilon"),
            rope_dimension_count=count("rope.dimension_count", head_dim),
            rope_freq_base=positive("rope.freq_base", 10000.0),
            rope_scaling_factor=positive("rope.scaling.factor", 1.0),
        )
        scaling = file.get("llama.rope.scaling.type", str, "linear")
        if scaling == "none":
            config = replace(config, rope_scaling_factor=1.0)
        elif scaling != "linear":
            raise file.error(
                f"RoPE scaling {scaling!r} is not supported; supported: none, linear, rope_freqs (Llama 3)"
            )
        if count("attention.value_length", head_dim) != head_dim:
            raise file.error("keys and values of different lengths are not supported")
        if file.get("llama.expert_count", int, 0):
            raise file.error("mixtures of experts are not supported")
        if heads % config.head_count_kv or head_dim % 4 or config.feed_forward_length % 4:
            raise file.error(
                f"{heads} heads of {head_dim} for {config.head_count_kv} kv heads, feed-forward "
                f"{config.feed_forward_length}: heads must divide evenly, lengths must be multiples of 4"
            )
        if config.rope_dimension_count % 2 or config.rope_dimension_count > head_dim:
            raise file.error(f"RoPE over {config.rope_dimension_count} elements of a head of {head_dim}")
        return config


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a forward pass reads besides weights and cache; the host writes it before each submission."""

    step: Tensor
    """I32 [4]: n_tokens, position, last_row, 0 (see ``wasmetal.ops``)."""
    ids: Tensor
    """I32 [rows]: the tokens, of which the first n_tokens are live."""
    page_table: Tensor
    """I32 [pages]: the session's pages of the cache."""


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of one layer."""

    attn_norm: Tensor
    qkv: Weight
    attn_output: Weight
    ffn_norm: Tensor
    gate_up: Weight
    ffn_down: Weight


class Llama:
    """A Llama on a device: its weights, room for activations of ``rows`` tokens, and the forward pass."""

    def __init__(self, file: GGUFFile, config: LlamaConfig, buffers: BufferGroup, context: int, rows: int):
        self.config = c = config
        self._load(file, buffers, context)
        q, kv = c.head_count * c.head_dim, c.head_count_kv * c.head_dim
        widths = (c.embedding_length, c.embedding_length, q + 2 * kv, q, 2 * c.feed_forward_length)
        self._x, self._normed, self._qkv, self._attended, self._gate_up = (
            buffers.tensor(rows, width) for width in widths
        )
        self._last = buffers.tensor(1, c.embedding_length)

    def body(self, rec: Recorder, inputs: Inputs, cache: KVCache) -> None:
        """Record all but the head, for as many tokens as ``inputs.ids`` has room for."""
        c, step, page_table, rows = self.config, inputs.step, inputs.page_table, inputs.ids.shape[0]
        x, normed, qkv, attended, gate_up = (
            t.rows(0, rows) for t in (self._x, self._normed, self._qkv, self._attended, self._gate_up)
        )
        q_end, k_end = c.head_count * c.head_dim, (c.head_count + c.head_count_kv) * c.head_dim
        q = _heads(qkv.columns(0, q_end), c.head_dim)
        k = _heads(qkv.columns(q_end, k_end), c.head_dim)
        v = _heads(qkv.columns(k_end, qkv.shape[1]), c.head_dim)
        q_and_k = _heads(qkv.columns(0, k_end), c.head_dim)
        gate, up = gate_up.columns(0, c.feed_forward_length), gate_up.columns(c.feed_forward_length, gate_up.shape[1])

        embed(rec, self._embeddings, inputs.ids, x, step=step)
        for block, (k_pages, v_pages) in zip(self._blocks, cache.layers, strict=True):
            rms_norm(rec, x, block.attn_norm, normed, c.norm_epsilon, step=step)
            block.qkv(rec, normed, qkv, step=step)
            rope(rec, q_and_k, self._rope_table, step, interleaved=True)
            kv_append(rec, k, v, k_pages, v_pages, page_table, step)
            attention(rec, q, k_pages, v_pages, page_table, step, attended, 1 / math.sqrt(c.head_dim))
            block.attn_output(rec, attended, x, step=step, accumulate=True)

            rms_norm(rec, x, block.ffn_norm, normed, c.norm_epsilon, step=step)
            block.gate_up(rec, normed, gate_up, step=step)
            silu_mul(rec, gate, up, gate, step=step)
            block.ffn_down(rec, gate, x, step=step, accumulate=True)

    def head(self, rec: Recorder, inputs: Inputs, logits: Tensor) -> None:
        """Record the logits, f32 [vocab_size], of the last token."""
        copy_row(rec, self._x, self._last, inputs.step)
        rms_norm(rec, self._last, self._output_norm, self._last, self.config.norm_epsilon)
        self._output(rec, self._last, logits.reshape(1, self.config.vocab_size), step=None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the device reads for each token, one row of the embeddings aside."""
        layers = (w.nbytes for b in self._blocks for w in (b.qkv, b.attn_output, b.gate_up, b.ffn_down))
        return sum(layers) + self._output.nbytes

    def _load(self, file: GGUFFile, buffers: BufferGroup, context: int) -> None:
        c = self.config
        unused = dict(file.tensors)

        def tensor(name: str, *shape: int) -> GGUFTensor:
            found = unused.pop(f"{name}.weight", None)
            if found is None:
                raise file.error(f"the tensor {name}.weight is missing")
            if found.shape != shape or found.dtype is DType.I32:
                raise file.error(f"{name}.weight is {found.dtype.name} {found.shape}; {shape} is expected")
            return found

        def matrices(block: str) -> Iterator[list[GGUFTensor]]:
            dim, hidden = c.embedding_length, c.feed_forward_length
            q, kv = c.head_count * c.head_dim, c.head_count_kv * c.head_dim
            yield [tensor(block + "attn_norm", dim)]
            yield [tensor(block + "attn_q", q, dim), *(tensor(block + f"attn_{kind}", kv, dim) for kind in "kv")]
            yield [tensor(block + "attn_output", dim, q)]
            yield [tensor(block + "ffn_norm", dim)]
            yield [tensor(block + f"ffn_{kind}", hidden, dim) for kind in ("gate", "up")]
            yield [tensor(block + "ffn_down", dim, hidden)]

        # Everything is looked up, and so checked, before anything is allocated.
        ends = [[tensor("output_norm", c.embedding_length)], [tensor("token_embd", c.vocab_size, c.embedding_length)]]
        if "output.weight" in unused:
            ends.append([tensor("output", c.vocab_size, c.embedding_length)])
        frequencies = None
        if "rope_freqs.weight" in unused:
            frequencies = tensor("rope_freqs", c.rope_dimension_count // 2).dequantize()
        layers = [list(matrices(f"blk.{i}.")) for i in range(c.block_count)]
        if unused:
            raise file.error(f"the tensor {next(iter(unused))} is not supported in a llama")

        weights = Weights(buffers, file)
        output_norm, embeddings, *output = weights.place(ends)
        self._output_norm, self._embeddings = output_norm.tensor(), embeddings.tensor()
        self._output = output[0] if output else embeddings
        self._blocks = []
        for layer in layers:
            attn_norm, qkv, attn_output, ffn_norm, gate_up, ffn_down = weights.place(layer)
            self._blocks.append(Block(attn_norm.tensor(), qkv, attn_output, ffn_norm.tensor(), gate_up, ffn_down))

        table = rope_table(c, context, frequencies)
        self._rope_table = buffers.tensor(*table.shape)
        buffers.device.load(self._rope_table.buffer, 0, table.reshape(-1).view(np.uint8))


def rope_table(config: LlamaConfig, positions: int, factors: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(cos, sin) of every position and pair, f32 [positions, rope_dimension_count / 2, 2], worked out in float64.

    The angle of pair i at a position is position * base^(-2i / rope_dimension_count), divided by the linear scaling
    factor and by ``factors[i]`` (the tensor ``rope_freqs`` of Llama 3.1 and later, which stretches the slow ones).
    """
    pairs = np.arange(config.rope_dimension_count // 2, dtype=np.float64)
    frequencies = config.rope_freq_base ** (-2 * pairs / config.rope_dimension_count) / config.rope_scaling_factor
    if factors is not None:
        frequencies = frequencies / factors
    angles = np.arange(positions)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """[T, heads * head_dim] as [T, heads, head_dim]."""
    return replace(x, shape=(x.shape[0], x.shape[1] // head_dim, head_dim))
