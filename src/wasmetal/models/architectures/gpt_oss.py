"""The architecture ``gpt-oss``: gpt-oss-20b and gpt-oss-120b.

OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025. Mixtures of experts whose gate is limited; biases everywhere; a
sink for each head of attention; every other layer sees a sliding window. YaRN's ramp may begin and end within pairs.
"""

from __future__ import annotations

from wasmetal.models.architectures.decoder import Decoder
from wasmetal.models.architectures.feed_forward import Experts, FeedForward, Mixture
from wasmetal.ops import swiglu_oai

PERIOD = 2
"""Every layer of this number sees everything. The metadata does not say."""


class GptOss(Decoder):
    """The decoder with biases, sinks and experts."""

    name = "gpt-oss"
    reads = frozenset({"attention.sliding_window"})
    interleaved_rope = False
    yarn_whole_pairs = False
    qkv_bias = True
    output_bias = True
    sinks = True
    ffn_norm = "post_attention_norm"
    gate = staticmethod(swiglu_oai)

    def feed_forward(self) -> FeedForward:
        """A mixture with biases."""
        return Mixture(self.config.embedding_length, Experts.read(self.metadata), self.gate, biases=True)

    def window(self, layer: int) -> int | None:
        """Of the first layer and every second one after it."""
        return super().window(layer) if (layer + 1) % PERIOD else None
