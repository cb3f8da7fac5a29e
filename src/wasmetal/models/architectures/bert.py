"""The architecture ``bert``: encoders such as all-MiniLM and bge, which make embeddings of texts.

Devlin et al., "BERT", 2018. Every row attends to its whole text; positions are learned; LayerNorm stands behind
attention and feed-forward network, each added to its input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from wasmetal.device.base import MemoryKind
from wasmetal.models.architectures.checked import Metadata, Tensors
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files.model_file import FileTensor, ModelFile
from wasmetal.models.weights import Weight, Weights
from wasmetal.ops import Recorder, Tensor, add, attention, embed, gelu, kv_append, layer_norm

MAX_HEAD_DIM = 256
PARTS = ("weight", "bias")
"""Of a projection, and of a LayerNorm."""


@dataclass(frozen=True, slots=True)
class EncoderInputs:
    """Inputs of a pass over T rows of up to S texts, which the host writes before each submission."""

    ids: Tensor
    """I32 [T]: the token of each row."""
    positions: Tensor
    """I32 [T]: its position."""
    own: Tensor
    """I32 [1 + T, 2]: batch metadata (``wasmetal.ops.batch``), with each row's own position."""
    last: Tensor
    """The same with the last position of each row's text in its place, up to which the row attends."""
    sequences: Tensor
    """I32 [S, 1 + P]: each text's length and page table."""


class Bert:
    """An encoder: the tensors of a file, then weights on a device, and the forward pass."""

    name: ClassVar[str] = "bert"

    def __init__(self, file: ModelFile) -> None:
        """Read the metadata and check every tensor. Raises ModelError."""
        metadata = Metadata(file, self.name)
        count = metadata.count
        self.context_length = count("context_length")
        self.width = width = count("embedding_length")
        self.heads = count("attention.head_count")
        self._hidden = count("feed_forward_length")
        self._epsilon = metadata.positive("attention.layer_norm_epsilon")
        self.head_dim = width // self.heads
        if width % self.heads or self.head_dim % 4 or self._hidden % 4 or self.head_dim > MAX_HEAD_DIM:
            raise file.error(
                f"{self.heads} heads in {width} elements, feed-forward {self._hidden}: heads must divide evenly, "
                f"lengths must be multiples of 4, and a head has at most {MAX_HEAD_DIM} elements"
            )
        if file.get(metadata.key("attention.causal"), bool, False):
            raise file.error(f"{metadata.key('attention.causal')} is True; the architecture bert supports only False")
        self._file = file
        tensors = Tensors(file)
        take = tensors.take
        vocabulary = len(file.require("tokenizer.ggml.tokens", list))
        self._tokens = take("token_embd.weight", vocabulary, width)
        self._positions = take("position_embd.weight", self.context_length, width)
        kinds = file.get("tokenizer.ggml.token_type_count", int, 2)
        self._kinds = take("token_types.weight", kinds, width) if "token_types.weight" in tensors else None
        self._first = {name: [take(name, width)] for name in (f"token_embd_norm.{part}" for part in PARTS)}
        self._layers = [self._take_layer(tensors, f"blk.{i}") for i in range(count("block_count"))]
        tensors.finish(self.name)

    def _take_layer(self, tensors: Tensors, block: str) -> dict[str, list[FileTensor]]:
        """The tensors of each of a layer's weights."""
        take, width, hidden = tensors.take, self.width, self._hidden
        qkv = [f"{block}.attn_{kind}" for kind in "qkv"]
        layer = {
            "qkv.weight": [take(f"{name}.weight", width, width) for name in qkv],
            "qkv.bias": [take(f"{name}.bias", width) for name in qkv],
        }
        for name, rows, columns in (
            ("attn_output", width, width),
            ("ffn_up", hidden, width),
            ("ffn_down", width, hidden),
        ):
            layer[f"{name}.weight"] = [take(f"{block}.{name}.weight", rows, columns)]
            layer[f"{name}.bias"] = [take(f"{block}.{name}.bias", rows)]
        for norm in ("attn_output_norm", "layer_output_norm"):
            layer |= {f"{norm}.{part}": [take(f"{block}.{norm}.{part}", width)] for part in PARTS}
        return layer

    def load(self, buffers: BufferGroup, rows: int, pages: int, page_size: int) -> None:
        """Load the weights onto the device, with room for ``rows`` rows, and for the keys and values of their texts in
        one layer. Raises OutOfDeviceMemoryError.
        """
        weights = Weights(buffers, self._file)
        self._embeddings = weights.place([[self._tokens]])[0].tensor()
        # All texts are of the first of BERT's two types of segments.
        table = self._positions.dequantize() + (0 if self._kinds is None else self._kinds.dequantize()[0])
        self._position_table = buffers.tensor(*table.shape)
        buffers.load(self._position_table.buffer, 0, table.astype(np.float32).reshape(-1).view(np.uint8))
        self._norm = dict(zip(self._first, weights.place(list(self._first.values())), strict=True))
        self._blocks = [dict(zip(layer, weights.place(list(layer.values())), strict=True)) for layer in self._layers]
        pool = (pages, page_size, self.heads, self.head_dim)
        self._pools = buffers.tensor(*pool), buffers.tensor(*pool)
        self._x, self._attended, self._added = (buffers.tensor(rows, self.width) for _ in range(3))
        self._qkv, self._up = buffers.tensor(rows, 3 * self.width), buffers.tensor(rows, self._hidden)
        self.states = buffers.tensor(rows, self.width, kind=MemoryKind.SHARED)
        """What a pass makes of each row, f32 [rows, width], in memory that host and device share."""
        del self._file, self._tokens, self._positions, self._kinds, self._first, self._layers

    def body(self, rec: Recorder, inputs: EncoderInputs) -> None:
        """Record a pass over all rows of ``inputs.ids``."""
        rows, valid, width = inputs.ids.shape[0], inputs.own, self.width
        x, attended, added, qkv, up, states = (
            t.rows(0, rows) for t in (self._x, self._attended, self._added, self._qkv, self._up, self.states)
        )
        q, k, v = (self._in_heads(qkv.columns(i * width, (i + 1) * width)) for i in range(3))

        def norm(weights: Mapping[str, Weight], name: str, out: Tensor) -> None:
            weight, bias = (weights[f"{name}.{part}"].tensor() for part in PARTS)
            layer_norm(rec, x, weight, bias, out, self._epsilon, batch=valid)

        def project(weights: Mapping[str, Weight], name: str, of: Tensor, out: Tensor) -> None:
            weights[f"{name}.weight"](rec, of, out, batch=valid)
            weights[f"{name}.bias"].add_to(rec, out)

        embed(rec, self._embeddings, inputs.ids, x)
        embed(rec, self._position_table, inputs.positions, added)
        add(rec, x, added, x)
        norm(self._norm, "token_embd_norm", x)
        for number, block in enumerate(self._blocks):
            project(block, "qkv", x, qkv)
            kv_append(rec, k, v, *self._pools, inputs.own, inputs.sequences)
            scale = 1 / math.sqrt(self.head_dim)
            attention(rec, q, *self._pools, inputs.last, inputs.sequences, attended, scale)
            project(block, "attn_output", attended, added)
            add(rec, x, added, x)
            norm(block, "attn_output_norm", x)
            project(block, "ffn_up", x, up)
            gelu(rec, up, up, batch=valid)
            project(block, "ffn_down", up, added)
            add(rec, x, added, x)
            norm(block, "layer_output_norm", states if number == len(self._blocks) - 1 else x)

    def _in_heads(self, x: Tensor) -> Tensor:
        return replace(x, shape=(x.shape[0], self.heads, self.head_dim))
