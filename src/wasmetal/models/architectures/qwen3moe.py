"""The architecture ``qwen3moe``: the mixtures of experts of Qwen 3.

A. Yang et al., "Qwen3 Technical Report", 2025: Qwen 3 with a mixture in every layer, without shared experts.
"""

from __future__ import annotations

from wasmetal.models.architectures.feed_forward import Experts, FeedForward, Mixture
from wasmetal.models.architectures.qwen3 import Qwen3


class Qwen3MoE(Qwen3):
    """Qwen 3 with experts."""

    name = "qwen3moe"

    def feed_forward(self) -> FeedForward:
        """A mixture."""
        return Mixture(self.config.embedding_length, Experts.read(self.metadata), self.gate)
