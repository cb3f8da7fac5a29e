"""The architecture ``llama``: Llama 1 to 3, SmolLM2, Mistral, and what else is built like them.

H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.
"""

from __future__ import annotations

from wasmetal.models.architectures.decoder import Decoder


class Llama(Decoder):
    """The decoder as it is."""

    name = "llama"
    interleaved_rope = True  # GGUF files have the rows of q and k reordered so that pairs are neighbours.
