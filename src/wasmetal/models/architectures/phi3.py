"""The architecture ``phi3``: Phi 3, 3.5 and 4, without their mixtures of experts.

M. Abdin et al., "Phi-3 Technical Report", 2024: a Llama whose projections are stored in one matrix. For long contexts
each frequency of RoPE has a factor (Y. Ding et al., "LongRoPE", 2024).
"""

from __future__ import annotations

from wasmetal.models.architectures.checked import Tensors
from wasmetal.models.architectures.decoder import Decoder
from wasmetal.models.architectures.rope import Rope, take_factors
from wasmetal.models.files.model_file import FileTensor


class Phi3(Decoder):
    """The decoder with joined projections, and with two sets of RoPE's factors."""

    name = "phi3"
    reads = frozenset({"attention.sliding_window"})
    interleaved_rope = False
    longrope = True

    def take_factors(self, tensors: Tensors) -> None:
        """Factors for contexts no longer than the original one, and for longer ones."""
        self._original = self.metadata.count("rope.scaling.original_context_length", self.config.context_length)
        self._long = self._rope
        names = "rope_factors_long.weight", "rope_factors_short.weight"
        if names[0] in tensors or self.metadata.text("rope.scaling.type", "none") == "longrope":
            long, short = (take_factors(self.metadata, tensors, name, self._rope) for name in names)
            self._long, self._rope = self._rope.divided(long), self._rope.divided(short)

    def take_qkv(self, tensors: Tensors, block: str) -> list[FileTensor]:
        """One tensor."""
        return [tensors.take(f"{block}.attn_qkv.weight", sum(self._widths.values()), self.config.embedding_length)]

    def take_gate_up(self, tensors: Tensors, block: str) -> list[FileTensor]:
        """One tensor."""
        c = self.config
        return [tensors.take(f"{block}.ffn_up.weight", 2 * c.feed_forward_length, c.embedding_length)]

    def rope(self, layer: int, context: int) -> Rope:
        """By the length of the context, even while fewer positions are in use: keys in the cache stay valid."""
        return self._long if context > self._original else self._rope
