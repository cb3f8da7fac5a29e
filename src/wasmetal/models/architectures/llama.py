"""The architecture ``llama``: Llama 1 to 3, SmolLM2, Mistral, Mixtral and models built like them.

H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023. The first Mistral attends in a sliding
window (A. Q. Jiang et al., "Mistral 7B", 2023), and Mixtral has mixtures of experts (A. Q. Jiang et al., "Mixtral of
Experts", 2024), if the metadata has them.
"""

from __future__ import annotations

from wasmetal.models.architectures.decoder import Decoder
from wasmetal.models.architectures.feed_forward import Experts, FeedForward, Mixture


class Llama(Decoder):
    """The decoder without changes, or with experts."""

    name = "llama"
    reads = frozenset({"attention.sliding_window"})
    interleaved_rope = True  # GGUF files reorder the rows of q and k so that pairs are adjacent.

    def feed_forward(self) -> FeedForward:
        """A mixture if there are experts."""
        if not self.metadata.count("expert_count", 0, least=0):
            return super().feed_forward()
        return Mixture(self.config.embedding_length, Experts.read(self.metadata), self.gate)
