"""The decoder of most language models: in every layer attention and a gated feed-forward network, each added to the
residual stream, with RMS norms, rotary position embedding and grouped queries.

Architectures are subclasses that define their differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from wasmetal.models.architectures.checked import Metadata, Tensors
from wasmetal.models.architectures.feed_forward import Dense, FeedForward, Gate
from wasmetal.models.architectures.network import Inputs, KVPools
from wasmetal.models.architectures.normed import Normed
from wasmetal.models.architectures.rope import Rope, read_rope, take_factors
from wasmetal.models.architectures.self_attention import SelfAttention, as_heads
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files.model_file import FileTensor, ModelFile
from wasmetal.models.weights import Matrix, Weight, Weights
from wasmetal.ops import (
    Recorder,
    Tensor,
    add,
    embed,
    rms_norm,
    scale,
    silu_mul,
)

NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.scale": 0.0,
    "attention.sliding_window": 0,
    "attention.temperature_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_gating_func": 1,
    "expert_shared_count": 0,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
"""Metadata that changes what a model computes, and the value with which it does not."""


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

    @classmethod
    def read(cls, metadata: Metadata) -> DecoderConfig:
        """Read and check the metadata. Raises ModelError."""
        file, count = metadata.file, metadata.count
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
            norm_epsilon=metadata.positive("attention.layer_norm_rms_epsilon"),
        )
        if count("attention.value_length", head_dim) != head_dim:
            raise file.error("keys and values of different lengths are not supported")
        if heads % config.head_count_kv or head_dim % 4 or config.feed_forward_length % 4:
            raise file.error(
                f"{heads} heads of {head_dim} for {config.head_count_kv} kv heads, feed-forward "
                f"{config.feed_forward_length}: heads must divide evenly, lengths must be multiples of 4"
            )
        return config


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of one layer, and how it attends."""

    norms: Mapping[str, Tensor]
    """Those that it has of ``attn``, ``attn_q``, ``attn_k``, ``post_attention``, ``ffn`` and ``post_ffw``."""
    qkv: Weight
    qkv_bias: Weight | None
    attn_output: Weight
    output_bias: Weight | None
    sinks: Tensor | None
    feed_forward: Mapping[str, Weight]
    rope: Tensor | None
    """The table of its rotations, if queries and keys are turned."""
    window: int | None
    """How many positions, up to its own, a row sees; all if it is None."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """The tensors of a layer's weights."""

    attention: Mapping[str, Matrix]
    norms: Mapping[str, Matrix]
    feed_forward: Mapping[str, Matrix]


class Decoder:
    """A decoder: the tensors of a file, then weights on a device, and the forward pass."""

    name: ClassVar[str]
    """Prefix of the metadata keys."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """The keys of NEUTRAL that may have any value."""
    interleaved_rope: ClassVar[bool]
    """Whether the pairs that RoPE rotates are adjacent; otherwise they are half the rotated elements apart."""
    longrope: ClassVar[bool] = False
    """Whether the RoPE scaling ``longrope`` is supported."""
    yarn_whole_pairs: ClassVar[bool] = True
    """Whether YaRN's ramp is widened to begin and end at whole pairs."""
    qkv_bias: ClassVar[bool] = False
    """Whether queries, keys and values have biases."""
    output_bias: ClassVar[bool] = False
    """Whether attention's output has a bias."""
    sinks: ClassVar[bool] = False
    """Whether each head of attention has a sink."""
    qk_norm: ClassVar[Literal["heads", "rows"] | None] = None
    """What of queries and keys is normed before they are turned, if anything: each head, or whole rows."""
    pre_norms: ClassVar[bool] = True
    """Whether the inputs of attention and feed-forward network are normed."""
    ffn_norm: ClassVar[str] = "ffn_norm"
    """The name of the latter norm's tensor."""
    post_norms: ClassVar[bool] = False
    """Whether their outputs are."""
    gate: ClassVar[Gate] = staticmethod(silu_mul)
    """How the feed-forward network is gated."""

    def __init__(self, file: ModelFile) -> None:
        """Read the metadata and check every tensor, so that nothing is allocated for a file that cannot be used.

        Raises ModelError.
        """
        self.metadata = Metadata(file, self.name)
        self.config = c = DecoderConfig.read(self.metadata)
        self._file = file
        for name, neutral in NEUTRAL.items():
            key = self.metadata.key(name)
            if name not in self.reads and file.get(key, type(neutral), neutral) != neutral:
                raise file.error(f"{key} is {file.fields[key]}; the architecture {self.name} supports only {neutral}")

        self._window = self.metadata.count("attention.sliding_window", 0, least=0) or None
        self.embedding_scale = self.logit_scale = 1.0
        """What embeddings and logits are multiplied by."""
        self.attention_scale = 1 / math.sqrt(c.head_dim)
        """What the products of queries and keys are multiplied by."""

        self._feed_forward = self.feed_forward()
        tensors = Tensors(file)
        self._ends = [
            [tensors.take("output_norm.weight", c.embedding_length)],
            [tensors.take("token_embd.weight", c.vocab_size, c.embedding_length)],
        ]
        if "output.weight" in tensors:
            self._ends.append([tensors.take("output.weight", c.vocab_size, c.embedding_length)])
        self._rope = read_rope(self.metadata, c.head_dim, longrope=self.longrope, whole_pairs=self.yarn_whole_pairs)
        self.take_factors(tensors)
        self._layers = [self._take_layer(tensors, f"blk.{i}") for i in range(c.block_count)]
        tensors.finish(self.name)

    def _take_layer(self, tensors: Tensors, block: str) -> _Layer:
        """The tensors of each of a layer's weights."""
        c, take = self.config, tensors.take
        dim, q = c.embedding_length, c.head_count * c.head_dim
        layer = {
            "qkv": self.take_qkv(tensors, block),
            "attn_output": [take(f"{block}.attn_output.weight", dim, q)],
        }
        if self.qkv_bias:
            layer["qkv_bias"] = [take(f"{block}.attn_{kind}.bias", width) for kind, width in self._widths.items()]
        if self.output_bias:
            layer["output_bias"] = [take(f"{block}.attn_output.bias", dim)]
        if self.sinks:
            layer["sinks"] = [take(f"{block}.attn_sinks.weight", c.head_count)]

        def norm(name: str, width: int) -> Matrix:
            return [take(f"{block}.{name}.weight", width)]

        norms: dict[str, Matrix] = {}
        if self.pre_norms:
            norms |= {"attn": norm("attn_norm", dim), "ffn": norm(self.ffn_norm, dim)}
        if self.post_norms:
            norms |= {name: norm(f"{name}_norm", dim) for name in ("post_attention", "post_ffw")}
        if self.qk_norm:
            widths = self._widths if self.qk_norm == "rows" else dict.fromkeys(self._widths, c.head_dim)
            norms |= {f"attn_{kind}": norm(f"attn_{kind}_norm", widths[kind]) for kind in ("q", "k")}
        return _Layer(layer, norms, self._feed_forward.take(tensors, block))

    @property
    def _widths(self) -> dict[str, int]:
        """Elements of a row's queries, keys and values."""
        c = self.config
        return {"q": c.head_count * c.head_dim, "k": c.head_count_kv * c.head_dim, "v": c.head_count_kv * c.head_dim}

    # What architectures may do in another way

    def take_factors(self, tensors: Tensors) -> None:
        """Take the tensors that scale RoPE, if there are any."""
        if "rope_freqs.weight" in tensors:
            self._rope = self._rope.divided(take_factors(self.metadata, tensors, "rope_freqs.weight", self._rope))

    def take_qkv(self, tensors: Tensors, block: str) -> list[FileTensor]:
        """The projections to queries, keys and values, in that order."""
        dim = self.config.embedding_length
        return [tensors.take(f"{block}.attn_{kind}.weight", width, dim) for kind, width in self._widths.items()]

    def take_gate_up(self, tensors: Tensors, block: str) -> list[FileTensor]:
        """The two projections that open the feed-forward network, the one that is activated first."""
        dim, hidden = self.config.embedding_length, self.config.feed_forward_length
        return [tensors.take(f"{block}.ffn_{kind}.weight", hidden, dim) for kind in ("gate", "up")]

    def feed_forward(self) -> FeedForward:
        """The feed-forward networks."""
        if self.metadata.count("expert_count", 0, least=0):
            raise self._file.error(f"mixtures of experts are not supported in the architecture {self.name}")
        return Dense(self.config.embedding_length, self.config.feed_forward_length, self.gate, self.take_gate_up)

    def rope(self, layer: int, context: int) -> Rope | None:
        """The rotation of a layer's queries and keys at positions < ``context``; layers of a kind have one object."""
        return self._rope

    def window(self, layer: int) -> int | None:
        """How many positions, up to its own, a row sees in a layer; all if it is None."""
        return self._window

    # What they have in common

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the device reads for each token, not counting its row of the embeddings."""
        attention = sum(block.qkv.nbytes + block.attn_output.nbytes for block in self._blocks)
        feed_forward = sum(self._feed_forward.active_bytes(block.feed_forward) for block in self._blocks)
        return attention + feed_forward + self._output.nbytes

    @property
    def mixes_experts(self) -> bool:
        """Whether a row's products are computed with those of other rows that chose the same expert."""
        return not isinstance(self._feed_forward, Dense)

    def load(self, buffers: BufferGroup, context: int, rows: int) -> None:
        """Load the weights onto the device, with room for activations of up to ``rows`` rows at positions <
        ``context``; once, because what was read of the file is given up. Raises OutOfDeviceMemoryError.
        """
        c, weights = self.config, Weights(buffers, self._file)
        output_norm, embeddings, *output = weights.place(self._ends)
        self._output_norm, self._embeddings = output_norm.tensor(), embeddings.tensor()
        self._output = output[0] if output else embeddings
        ropes = [self.rope(layer, context) for layer in range(c.block_count)]
        tables = {kind: _load_table(buffers, kind, context) for kind in dict.fromkeys(ropes) if kind}
        self._blocks = []
        for number, (layer, kind) in enumerate(zip(self._layers, ropes, strict=True)):
            groups = (layer.attention, layer.norms, layer.feed_forward)
            placed = iter(weights.place([matrix for group in groups for matrix in group.values()]))
            attention, norms, feed_forward = ({name: next(placed) for name in group} for group in groups)
            self._blocks.append(
                Block(
                    norms={name: weight.tensor() for name, weight in norms.items()},
                    qkv=attention["qkv"],
                    qkv_bias=attention.get("qkv_bias"),
                    attn_output=attention["attn_output"],
                    output_bias=attention.get("output_bias"),
                    sinks=attention["sinks"].tensor() if self.sinks else None,
                    feed_forward=feed_forward,
                    rope=tables[kind] if kind else None,
                    window=self.window(number),
                )
            )

        q, kv = self._widths["q"], self._widths["k"]
        self._x, self._normed = (buffers.tensor(rows, c.embedding_length) for _ in range(2))
        self._qkv, self._attended = buffers.tensor(rows, q + 2 * kv), buffers.tensor(rows, q)
        sizes = c.head_count, c.head_count_kv, c.head_dim
        self._attend = SelfAttention.allocate(buffers, rows, *sizes, self.attention_scale, self.interleaved_rope)
        self._feed_forward.allocate(buffers, rows)
        self._last = buffers.tensor(rows, c.embedding_length)
        del self._file, self.metadata, self._layers, self._ends  # a vocabulary takes tens of MiB

    def body(self, rec: Recorder, inputs: Inputs, cache: Sequence[KVPools]) -> None:
        """Record everything but the head, for all rows of ``inputs.ids``."""
        c, rows = self.config, inputs.ids.shape[0]
        valid = inputs.batch if rows > 1 else None  # A single row is always valid.
        x, normed, qkv, attended = (t.rows(0, rows) for t in (self._x, self._normed, self._qkv, self._attended))
        q_end, k_end = c.head_count * c.head_dim, (c.head_count + c.head_count_kv) * c.head_dim
        q = as_heads(qkv.columns(0, q_end), c.head_dim)
        k = as_heads(qkv.columns(q_end, k_end), c.head_dim)

        def normed_by(weight: Tensor | None) -> Normed:
            """The residual stream, normed if there is a weight for it."""
            return Normed(rec, x, weight, c.norm_epsilon, normed, valid)

        def add_output(project: Callable[..., None], norm: Tensor | None) -> None:
            """Add what ``project(out, accumulate=…)`` records to the residual stream, normed if there is a norm."""
            if norm is None:
                project(x, accumulate=True)
            else:
                project(normed, accumulate=False)
                rms_norm(rec, normed, norm, normed, c.norm_epsilon, batch=valid)
                add(rec, x, normed, x)

        if self.embedding_scale == 1:
            embed(rec, self._embeddings, inputs.ids, x, batch=valid)
        else:
            embed(rec, self._embeddings, inputs.ids, x)  # All rows, as all are scaled.
            scale(rec, x, self.embedding_scale, x)
        for block, pools in zip(self._blocks, cache, strict=True):
            norms = block.norms
            normed_by(norms.get("attn")).product(block.qkv, qkv, block.qkv_bias)
            for name, part, width in (("attn_q", q, q_end), ("attn_k", k, k_end - q_end)):
                if name in norms:
                    what = replace(part, shape=(rows, width)) if self.qk_norm == "rows" else part
                    rms_norm(rec, what, norms[name], what, c.norm_epsilon, batch=valid)
            self._attend(*(rec, qkv, pools, inputs, attended), table=block.rope, window=block.window, sinks=block.sinks)
            output = partial(block.attn_output, rec, attended, batch=valid)
            add_output(output, norms.get("post_attention"))
            if block.output_bias:
                block.output_bias.add_to(rec, x)

            network = partial(self._feed_forward, block.feed_forward, normed_by(norms.get("ffn")))
            add_output(network, norms.get("post_ffw"))

    def head(self, rec: Recorder, rows: Tensor | None, logits: Tensor, batch: Tensor | None = None) -> None:
        """Record the logits, f32 [N, vocab_size], of some of the body's rows; ``rows``, I32 [N], holds their indices.

        Without ``rows`` they are those of the first N, which it may overwrite. ``batch``: batch metadata of the N rows,
        of which any number may be valid; None if all are.
        """
        if rows is None:
            last = self._x.rows(0, logits.shape[0])
        else:
            last = self._last.rows(0, rows.shape[0])
            embed(rec, self._x, rows, last, batch=batch)
        normed = Normed(rec, last, self._output_norm, self.config.norm_epsilon, last, batch)
        if self.logit_scale == 1:
            normed.product(self._output, logits)
        else:
            last = normed.rows()
            scale(rec, last, self.logit_scale, last)
            self._output(rec, last, logits, batch=batch)

    def states(self, rec: Recorder, rows: Tensor, out: Tensor, batch: Tensor) -> None:
        """Record some of the body's rows as the head norms them: out f32 [N, embedding_length]."""
        embed(rec, self._x, rows, out, batch=batch)
        rms_norm(rec, out, self._output_norm, out, self.config.norm_epsilon, batch=batch)


def _load_table(buffers: BufferGroup, kind: Rope, positions: int) -> Tensor:
    """A rotation's table on the device."""
    table = kind.table(positions)
    loaded = buffers.tensor(*table.shape)
    buffers.load(loaded.buffer, 0, table.reshape(-1).view(np.uint8))
    return loaded
