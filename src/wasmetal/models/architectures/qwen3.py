"""The architecture ``qwen3``: the dense models of Qwen 3.

A. Yang et al., "Qwen3 Technical Report", 2025: a Llama whose queries and keys are normed, each head by itself.
"""

from __future__ import annotations

from wasmetal.models.architectures.decoder import Decoder


class Qwen3(Decoder):
    """The decoder with norms of queries and keys."""

    name = "qwen3"
    interleaved_rope = False
    qk_norm = "heads"
