"""The architecture ``llama``: Llama 1 to 3, SmolLM2, Mistral and models built like them.

H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023. The first Mistral attends in a sliding
window (A. Q. Jiang et al., "Mistral 7B", 2023), if the metadata has it.
"""

from __future__ import annotations

from wasmetal.models.architectures.decoder import Decoder


class Llama(Decoder):
    """The decoder without changes."""

    name = "llama"
    reads = frozenset({"attention.sliding_window"})
    interleaved_rope = True  # GGUF files reorder the rows of q and k so that pairs are adjacent.
