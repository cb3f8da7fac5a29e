"""The architecture ``olmo2``: OLMo 2.

Team OLMo, "2 OLMo 2 Furious", 2024: norms are not before attention and feed-forward network but behind them, and
queries and keys are normed, too, all heads together.
"""

from __future__ import annotations

from wasmetal.models.architectures.decoder import Decoder


class Olmo2(Decoder):
    """The decoder with its norms in other places."""

    name = "olmo2"
    interleaved_rope = False
    pre_norms = False
    post_norms = True
    qk_norm = "rows"
