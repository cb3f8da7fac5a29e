"""The decoder of most language models: in every layer attention and a gated feed-forward network, each after an RMS
norm and added to the residual stream, with rotary position embedding and grouped queries.

Architectures are subclasses that define their differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wasmetal.models.architectures.network import Inputs, KVPools
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files.gguf import GGUFFile, GGUFTensor
from wasmetal.models.weights import Weight, Weights
from wasmetal.ops import (
    DType,
    Recorder,
    Tensor,
    attention,
    embed,
    kv_append,
    rms_norm,
    rope,
    silu_mul,
)


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A model's dimensions, from its metadata."""

    context_length: int
    """Positions that the model was trained for."""
    embedding_length: int
    block_count: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    head_dim: int
    vocab_size: int
    norm_epsilon: float
    rope_dimension_count: int
    """Elements of each head that RoPE rotates."""
    rope_freq_base: float
    rope_scaling_factor: float
    """Divisor of positions (linear scaling)."""

    @classmethod
    def from_gguf(cls, file: GGUFFile, prefix: str) -> DecoderConfig:
        """Read and check the metadata, whose keys begin with ``prefix``. Raises ModelError."""

        def count(name: str, default: int | None = None) -> int:
            key = f"{prefix}.{name}"
            value = file.require(key, int) if default is None else file.get(key, int, default)
            if not 1 <= value < 2**31:
                raise file.error(f"{key} is {value}")
            return value

        def positive(name: str, default: float | None = None) -> float:
            key = f"{prefix}.{name}"
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
        scaling = file.get(f"{prefix}.rope.scaling.type", str, "linear")
        if scaling == "none":
            config = replace(config, rope_scaling_factor=1.0)
        elif scaling != "linear":
            raise file.error(
                f"RoPE scaling {scaling!r} is not supported; supported: none, linear, rope_freqs (Llama 3)"
            )
        if count("attention.value_length", head_dim) != head_dim:
            raise file.error("keys and values of different lengths are not supported")
        if file.get(f"{prefix}.expert_count", int, 0):
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
class Block:
    """The weights of one layer."""

    attn_norm: Tensor
    qkv: Weight
    attn_output: Weight
    ffn_norm: Tensor
    gate_up: Weight
    ffn_down: Weight
    qkv_bias: Weight | None


class Decoder:
    """A decoder: the tensors of a file, then weights on a device, and the forward pass."""

    name: ClassVar[str]
    """Prefix of the metadata keys."""
    interleaved_rope: ClassVar[bool]
    """Whether the pairs that RoPE rotates are adjacent; otherwise they are half the rotated elements apart."""
    qkv_bias: ClassVar[bool] = False
    """Whether queries, keys and values have biases."""

    def __init__(self, file: GGUFFile) -> None:
        """Read the metadata and check every tensor, so that nothing is allocated for a file that cannot be used.

        Raises ModelError.
        """
        self.config = c = DecoderConfig.from_gguf(file, self.name)
        self._file = file
        unused = dict(file.tensors)

        def tensor(name: str, *shape: int) -> GGUFTensor:
            found = unused.pop(name, None)
            if found is None:
                raise file.error(f"the tensor {name} is missing")
            if found.shape != shape or found.dtype is DType.I32:
                raise file.error(f"{name} is {found.dtype.name} {found.shape}; {shape} is expected")
            return found

        def layer(block: str) -> Iterator[list[GGUFTensor]]:
            dim, hidden = c.embedding_length, c.feed_forward_length
            heads = {"q": c.head_count, "k": c.head_count_kv, "v": c.head_count_kv}
            widths = {kind: count * c.head_dim for kind, count in heads.items()}
            yield [tensor(f"{block}.attn_norm.weight", dim)]
            yield [tensor(f"{block}.attn_{kind}.weight", width, dim) for kind, width in widths.items()]
            yield [tensor(f"{block}.attn_output.weight", dim, widths["q"])]
            yield [tensor(f"{block}.ffn_norm.weight", dim)]
            yield [tensor(f"{block}.ffn_{kind}.weight", hidden, dim) for kind in ("gate", "up")]
            yield [tensor(f"{block}.ffn_down.weight", dim, hidden)]
            if self.qkv_bias:
                yield [tensor(f"{block}.attn_{kind}.bias", width) for kind, width in widths.items()]

        self._ends = [
            [tensor("output_norm.weight", c.embedding_length)],
            [tensor("token_embd.weight", c.vocab_size, c.embedding_length)],
        ]
        if "output.weight" in unused:
            self._ends.append([tensor("output.weight", c.vocab_size, c.embedding_length)])
        self._frequencies = None
        if "rope_freqs.weight" in unused:
            self._frequencies = tensor("rope_freqs.weight", c.rope_dimension_count // 2).dequantize()
        self._layers = [list(layer(f"blk.{i}")) for i in range(c.block_count)]
        if unused:
            raise file.error(f"the tensor {next(iter(unused))} is not supported in the architecture {self.name}")

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the device reads for each token, not counting its row of the embeddings."""
        layers = (w.nbytes for b in self._blocks for w in (b.qkv, b.attn_output, b.gate_up, b.ffn_down))
        return sum(layers) + self._output.nbytes

    def load(self, buffers: BufferGroup, context: int, rows: int) -> None:
        """Load the weights onto the device, with room for activations of up to ``rows`` rows at positions <
        ``context``.

        Raises OutOfDeviceMemoryError.
        """
        c, weights = self.config, Weights(buffers, self._file)
        output_norm, embeddings, *output = weights.place(self._ends)
        self._output_norm, self._embeddings = output_norm.tensor(), embeddings.tensor()
        self._output = output[0] if output else embeddings
        self._blocks = []
        for layer in self._layers:
            attn_norm, qkv, attn_output, ffn_norm, gate_up, ffn_down, *bias = weights.place(layer)
            norms = attn_norm.tensor(), ffn_norm.tensor()
            self._blocks.append(
                Block(norms[0], qkv, attn_output, norms[1], gate_up, ffn_down, bias[0] if bias else None)
            )
        table = rope_table(c, context, self._frequencies)
        self._rope_table = buffers.tensor(*table.shape)
        buffers.load(self._rope_table.buffer, 0, table.reshape(-1).view(np.uint8))

        q, kv = c.head_count * c.head_dim, c.head_count_kv * c.head_dim
        self._x, self._normed = (buffers.tensor(rows, c.embedding_length) for _ in range(2))
        self._qkv, self._attended = buffers.tensor(rows, q + 2 * kv), buffers.tensor(rows, q)
        self._gate_up = buffers.tensor(rows, 2 * c.feed_forward_length)
        self._last = buffers.tensor(1, c.embedding_length)

    def body(self, rec: Recorder, inputs: Inputs, cache: Sequence[KVPools]) -> None:
        """Record everything but the head, for all rows of ``inputs.ids``."""
        c, batch, sequences, rows = self.config, inputs.batch, inputs.sequences, inputs.ids.shape[0]
        valid = batch if rows > 1 else None  # A single row is always valid.
        x, normed, qkv, attended, gate_up = (
            t.rows(0, rows) for t in (self._x, self._normed, self._qkv, self._attended, self._gate_up)
        )
        q_end, k_end = c.head_count * c.head_dim, (c.head_count + c.head_count_kv) * c.head_dim
        q = _heads(qkv.columns(0, q_end), c.head_dim)
        k = _heads(qkv.columns(q_end, k_end), c.head_dim)
        v = _heads(qkv.columns(k_end, qkv.shape[1]), c.head_dim)
        q_and_k = _heads(qkv.columns(0, k_end), c.head_dim)
        gate, up = gate_up.columns(0, c.feed_forward_length), gate_up.columns(c.feed_forward_length, gate_up.shape[1])

        embed(rec, self._embeddings, inputs.ids, x, batch=valid)
        for block, (k_pages, v_pages) in zip(self._blocks, cache, strict=True):
            rms_norm(rec, x, block.attn_norm, normed, c.norm_epsilon, batch=valid)
            block.qkv(rec, normed, qkv, batch=valid)
            if block.qkv_bias:
                block.qkv_bias.add_to(rec, qkv)
            rope(rec, q_and_k, self._rope_table, batch, interleaved=self.interleaved_rope)
            kv_append(rec, k, v, k_pages, v_pages, batch, sequences)
            attention(rec, q, k_pages, v_pages, batch, sequences, attended, 1 / math.sqrt(c.head_dim))
            block.attn_output(rec, attended, x, batch=valid, accumulate=True)

            rms_norm(rec, x, block.ffn_norm, normed, c.norm_epsilon, batch=valid)
            block.gate_up(rec, normed, gate_up, batch=valid)
            silu_mul(rec, gate, up, gate, batch=valid)
            block.ffn_down(rec, gate, x, batch=valid, accumulate=True)

    def head(self, rec: Recorder, row: Tensor, logits: Tensor) -> None:
        """Record the logits, f32 [vocab_size], of one of the body's rows; ``row``, I32 [1], holds its index."""
        embed(rec, self._x, row, self._last)
        rms_norm(rec, self._last, self._output_norm, self._last, self.config.norm_epsilon)
        self._output(rec, self._last, logits.reshape(1, self.config.vocab_size), batch=None)


def rope_table(config: DecoderConfig, positions: int, factors: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(cos, sin) of every position and pair, f32 [positions, rope_dimension_count / 2, 2], computed in float64.

    The angle of pair i at a position is position * base^(-2i / rope_dimension_count), divided by the linear scaling
    factor and by ``factors[i]`` (the tensor ``rope_freqs`` of Llama 3.1 and later, which stretches low frequencies).
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
