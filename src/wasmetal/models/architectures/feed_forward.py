"""What a layer computes from each row by itself: a gated feed-forward network, or a mixture of such experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from wasmetal.models.architectures.checked import Metadata, Tensors
from wasmetal.models.architectures.normed import Normed
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.weights import Matrix, Weight
from wasmetal.ops import DType, Recorder, Tensor, embed, expert_linear, gelu_mul, silu_mul, top_k, weighted_sum
from wasmetal.ops.experts import MAX_SLOTS


class Gate(Protocol):
    """An op that multiplies one projection, activated, by another."""

    def __call__(self, rec: Recorder, gate: Tensor, up: Tensor, out: Tensor, *, batch: Tensor | None = None) -> None:
        """Record out = activation(gate) * up."""


_ACTIVATIONS: Mapping[Gate, str] = {silu_mul: "silu", gelu_mul: "gelu"}
"""The gates that one kernel computes with the products before them, by what it calls their activations."""


class FeedForward(Protocol):
    """The feed-forward networks of all layers, which differ in their weights only."""

    def take(self, tensors: Tensors, block: str) -> Mapping[str, Matrix]:
        """The tensors of each of a layer's weights. Raises ModelError."""

    def allocate(self, buffers: BufferGroup, rows: int) -> None:
        """Make room for the activations of up to ``rows`` rows. Raises OutOfDeviceMemoryError."""

    def __call__(self, layer: Mapping[str, Weight], x: Normed, out: Tensor, *, accumulate: bool) -> None:
        """Record a layer's network of rows of embedding_length, added to what ``out`` holds if ``accumulate``.

        ``out`` may be the scratch of x if it is not added to.
        """

    def active_bytes(self, layer: Mapping[str, Weight]) -> int:
        """Bytes of a layer's weights that the device reads for one row."""


class Dense:
    """down(activation(gate x) * up x), after N. Shazeer, "GLU Variants Improve Transformer", 2020."""

    def __init__(self, embedding: int, hidden: int, gate: Gate, gate_up: Callable[[Tensors, str], Matrix]) -> None:
        """``gate_up`` takes the two projections that open it, the one that is activated first."""
        self._embedding, self._hidden, self._gate, self._gate_up = embedding, hidden, gate, gate_up

    def take(self, tensors: Tensors, block: str) -> Mapping[str, Matrix]:
        """Gate and up as one weight."""
        down = tensors.take(f"{block}.ffn_down.weight", self._embedding, self._hidden)
        return {"gate_up": self._gate_up(tensors, block), "ffn_down": [down]}

    def allocate(self, buffers: BufferGroup, rows: int) -> None:
        """Gate and up, side by side."""
        self._scratch = buffers.tensor(rows, 2 * self._hidden)

    def __call__(self, layer: Mapping[str, Weight], x: Normed, out: Tensor, *, accumulate: bool) -> None:
        """Two products around the gate."""
        both = self._scratch.rows(0, x.x.shape[0])
        gate, up = both.columns(0, self._hidden), both.columns(self._hidden, 2 * self._hidden)
        activation = _ACTIVATIONS.get(self._gate)
        if activation is None or not x.gated(layer["gate_up"], gate, activation):
            x.product(layer["gate_up"], both)
            self._gate(x.rec, gate, up, gate, batch=x.batch)
        layer["ffn_down"](x.rec, gate, out, batch=x.batch, accumulate=accumulate)

    def active_bytes(self, layer: Mapping[str, Weight]) -> int:
        """All of them."""
        return sum(weight.nbytes for weight in layer.values())


@dataclass(frozen=True, slots=True)
class Experts:
    """How many experts there are."""

    count: int
    used: int
    """By each row."""
    hidden: int
    """Elements between the two products of an expert."""

    @classmethod
    def read(cls, metadata: Metadata) -> Experts:
        """Read and check the metadata. Raises ModelError."""
        count, used = metadata.count("expert_count"), metadata.count("expert_used_count")
        if used > min(count, MAX_SLOTS):
            raise metadata.file.error(
                f"{metadata.key('expert_used_count')} is {used} of {count}; at most {min(count, MAX_SLOTS)} can be used"
            )
        hidden = metadata.count("expert_feed_forward_length", metadata.count("feed_forward_length"))
        if hidden % 4:
            raise metadata.file.error(f"{metadata.key('expert_feed_forward_length')} is {hidden}, not a multiple of 4")
        return cls(count, used, hidden)


class Mixture:
    """The sum of a few experts' networks, weighted by the softmax of the scores for which they were chosen.

    N. Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", 2017. An
    expert's network is as in :class:`Dense`, with biases of the router and of each product if ``biases``.
    """

    def __init__(self, embedding: int, experts: Experts, gate: Gate, *, biases: bool = False) -> None:
        self._embedding, self._experts, self._gate, self._biases = embedding, experts, gate, biases

    def take(self, tensors: Tensors, block: str) -> Mapping[str, Matrix]:
        """Each kind of weight of all experts is one tensor."""
        e, dim = self._experts, self._embedding
        shapes = {
            "gate_inp": (e.count, dim),
            "gate_exps": (e.count, e.hidden, dim),
            "up_exps": (e.count, e.hidden, dim),
            "down_exps": (e.count, dim, e.hidden),
        }
        layer = {name: [tensors.take(f"{block}.ffn_{name}.weight", *shape)] for name, shape in shapes.items()}
        if self._biases:
            for name, shape in shapes.items():
                layer[f"{name}_bias"] = [tensors.take(f"{block}.ffn_{name}.bias", *shape[:-1])]
        return layer

    def allocate(self, buffers: BufferGroup, rows: int) -> None:
        """Scores, choices, and what each of a row's experts makes of it."""
        e = self._experts
        self._scores = buffers.tensor(rows, e.count)
        self._weights = buffers.tensor(rows, e.used)
        ids = buffers.allocate(DType.I32.row_bytes(rows * e.used))
        self._ids = Tensor(ids, 0, DType.I32, (rows, e.used))
        self._gated, self._up = (buffers.tensor(rows, e.used, e.hidden) for _ in range(2))
        self._down = buffers.tensor(rows, e.used, self._embedding)

    def __call__(self, layer: Mapping[str, Weight], x: Normed, out: Tensor, *, accumulate: bool) -> None:
        """Only the weights of chosen experts are read."""
        rec, batch, normed = x.rec, x.batch, x.rows()
        rows, used = normed.shape[0], self._experts.used
        tensors = (self._scores, self._weights, self._ids, self._gated, self._up, self._down)
        scores, weights, ids, gated, up, down = (tensor.rows(0, rows) for tensor in tensors)

        def project(name: str, each: Tensor, result: Tensor) -> None:
            """Multiply by the chosen experts' matrices of that name, and add their biases."""
            if self._biases:  # of all rows, valid or not
                flat = result.reshape(rows * used, result.shape[2])
                embed(rec, layer[f"{name}_bias"].tensor(), ids.reshape(rows * used), flat)
            expert_linear(rec, each, layer[name].tensor(), ids, result, accumulate=self._biases, batch=batch)

        layer["gate_inp"](rec, normed, scores, batch=batch)
        if self._biases:
            layer["gate_inp_bias"].add_to(rec, scores)
        top_k(rec, scores, ids, weights, batch=batch)
        project("gate_exps", normed, gated)
        project("up_exps", normed, up)
        side_by_side = gated.reshape(rows, used * self._experts.hidden)
        self._gate(rec, side_by_side, up.reshape(*side_by_side.shape), side_by_side, batch=batch)
        project("down_exps", gated, down)
        weighted_sum(rec, down, weights, out, accumulate=accumulate, batch=batch)

    def active_bytes(self, layer: Mapping[str, Weight]) -> int:
        """The router's, and its share of the experts'."""
        experts = sum(weight.nbytes for name, weight in layer.items() if "_exps" in name)
        router = sum(weight.nbytes for name, weight in layer.items() if "_exps" not in name)
        return router + experts * self._experts.used // self._experts.count
