"""The architecture ``smollm3``: SmolLM3.

E. Bakouch et al., "SmolLM3: smol, multilingual, long-context reasoner", 2025: a Llama in which every fourth layer has
no rotary positions (B. Yang et al., "Rope to Nope and Back Again: A New Hybrid Attention Strategy", 2025).
"""

from __future__ import annotations

from wasmetal.models.architectures.decoder import Decoder
from wasmetal.models.architectures.rope import Rope

NOPE_INTERVAL = 4
"""Every layer of this number has no RoPE. The metadata does not say."""


class SmolLM3(Decoder):
    """The decoder with layers that have no positions."""

    name = "smollm3"
    interleaved_rope = True  # GGUF files reorder the rows of q and k so that pairs are adjacent.

    def rope(self, layer: int, context: int) -> Rope | None:
        """As for other decoders, but None in some layers."""
        return None if (layer + 1) % NOPE_INTERVAL == 0 else super().rope(layer, context)
