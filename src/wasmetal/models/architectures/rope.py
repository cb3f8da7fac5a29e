"""Rotary position embedding: how far each pair of a head's elements is turned at each position.

J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021. Pair i of n turns by base^(-i / n)
radians per position. For contexts longer than those of the first training, frequencies are scaled:

* ``linear`` divides all by a factor (S. Chen et al., "Extending Context Window of Large Language Models via Positional
  Interpolation", 2023);
* ``yarn`` divides low ones by a factor, leaves high ones as they are, and makes what is turned longer (B. Peng et al.,
  "YaRN: Efficient Context Window Extension of Large Language Models", 2023);
* a tensor of the file has a divisor for each pair (``rope_freqs`` of Llama 3.1 and later, ``rope_factors`` of Phi 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wasmetal.models.architectures.checked import Metadata, Tensors


@dataclass(frozen=True, eq=False, slots=True)
class Rope:
    """The rotation of some layers."""

    frequencies: NDArray[np.float64]
    """[pairs]: radians per position."""
    magnitude: float = 1.0
    """Factor of the lengths of what is turned."""

    def table(self, positions: int) -> NDArray[np.float32]:
        """(cos, sin) of every position and pair, f32 [positions, pairs, 2], computed in float64."""
        angles = np.arange(positions)[:, None] * self.frequencies
        return (self.magnitude * np.stack([np.cos(angles), np.sin(angles)], axis=-1)).astype(np.float32)

    def divided(self, factors: NDArray[np.float32]) -> Rope:
        """The same with each frequency divided by its factor."""
        return replace(self, frequencies=self.frequencies / factors)


def dimensions(metadata: Metadata, head_dim: int) -> int:
    """How many elements of each head are turned. Raises ModelError."""
    rotated = metadata.count("rope.dimension_count", head_dim)
    if rotated % 2 or rotated > head_dim:
        raise metadata.file.error(f"RoPE over {rotated} elements of a head of {head_dim}")
    return rotated


def unscaled(rotated: int, base: float) -> Rope:
    """The rotation of ``rotated`` elements as it was published first."""
    return Rope(base ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated))


def read_rope(metadata: Metadata, head_dim: int, *, longrope: bool = False, whole_pairs: bool = True) -> Rope:
    """The rotation that the metadata describes, without tensors of factors; ``longrope``: whether the architecture
    reads those of longrope; ``whole_pairs``: whether YaRN's ramp is widened to begin and end at whole pairs. Raises
    ModelError if it is malformed or not supported."""
    rotated, base = dimensions(metadata, head_dim), metadata.positive("rope.freq_base", 10000.0)
    rope = replace(unscaled(rotated, base), magnitude=metadata.positive("rope.scaling.attn_factor", 1.0))
    factor = metadata.positive("rope.scaling.factor", metadata.positive("rope.scale_linear", 1.0))
    scaling = metadata.text("rope.scaling.type", "linear")
    if scaling == "none" or (scaling == "longrope" and longrope):
        return rope
    if scaling == "linear":
        return replace(rope, frequencies=rope.frequencies / factor)
    if scaling == "yarn":
        return _yarn(rope, metadata, rotated, base, factor, whole_pairs)
    supported = ", ".join(["none", "linear", "yarn", *(["longrope"] if longrope else []), "rope_freqs (Llama 3)"])
    raise metadata.file.error(f"RoPE scaling {scaling!r} is not supported; supported: {supported}")


def _yarn(rope: Rope, metadata: Metadata, rotated: int, base: float, factor: float, whole_pairs: bool) -> Rope:
    """Frequencies divided where a pair turns fewer than beta_slow times in the original context, kept where it turns
    more than beta_fast times, and in between by a ramp over the pairs."""
    original = metadata.count("rope.scaling.original_context_length", metadata.count("context_length"))
    if base <= 1:
        raise metadata.file.error(f"{metadata.key('rope.freq_base')} is {base}; YaRN needs more than 1")

    def pair(turns: float) -> float:
        """The pair, in fractions of one, that turns so often in the original context."""
        return rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = pair(metadata.positive("rope.scaling.yarn_beta_fast", 32.0))
    last = pair(metadata.positive("rope.scaling.yarn_beta_slow", 1.0))
    if whole_pairs:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    divided = np.clip((np.arange(rotated // 2) - first) / max(last - first, 0.001), 0, 1)
    frequencies = rope.frequencies * (1 - divided + divided / factor)
    return Rope(frequencies, rope.magnitude * (1 + 0.1 * math.log(max(factor, 1.0))))


def take_factors(metadata: Metadata, tensors: Tensors, name: str, rope: Rope) -> NDArray[np.float32]:
    """The divisors of a rotation's frequencies that are in a tensor. Raises ModelError."""
    factors = tensors.take(name, len(rope.frequencies)).dequantize()
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise metadata.file.error(f"{name} has a factor that is not a finite number above 0")
    return factors
