"""The architecture ``granite``: the dense models of IBM Granite 3 and later.

Granite Team, IBM, "Granite 3.0 Language Models", 2024: a Llama with multipliers of embeddings, of what layers add to
the residual stream, of attention's scores and of logits.
"""

from __future__ import annotations

from dataclasses import replace

from wasmetal.models.architectures.decoder import Decoder
from wasmetal.models.files.model_file import ModelFile


class Granite(Decoder):
    """The decoder with multipliers.

    The residual stream is kept divided by the multiplier r of what is added to it, so that r costs nothing: norms,
    which alone read it, give the same if their epsilon is divided by r².
    """

    name = "granite"
    reads = frozenset({"attention.scale", "embedding_scale", "logit_scale", "residual_scale"})
    interleaved_rope = True  # GGUF files reorder the rows of q and k so that pairs are adjacent.

    def __init__(self, file: ModelFile) -> None:
        """As for other decoders."""
        super().__init__(file)
        positive = self.metadata.positive
        residual = positive("residual_scale", 1.0)
        self.embedding_scale = positive("embedding_scale", 1.0) / residual
        self.attention_scale = positive("attention.scale", self.attention_scale)
        self.logit_scale = 1 / positive("logit_scale", 1.0)
        self.config = replace(self.config, norm_epsilon=self.config.norm_epsilon / residual**2)
