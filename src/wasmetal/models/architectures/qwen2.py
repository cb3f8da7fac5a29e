"""The architecture ``qwen2``: Qwen 2 and 2.5.

A. Yang et al., "Qwen2 Technical Report", 2024: a Llama with biases on queries, keys and values.
"""

from __future__ import annotations

from wasmetal.models.architectures.decoder import Decoder


class Qwen2(Decoder):
    """The decoder with biases."""

    name = "qwen2"
    interleaved_rope = False
    qkv_bias = True
