"""The architecture ``gemma3``: Gemma 3, text alone.

Gemma Team, "Gemma 3 Technical Report", 2025. Layers of two kinds: most see a sliding window and have RoPE of a base of
their own, without scaling; every sixth sees everything. There are norms before and behind attention and feed-forward
network, and of queries and keys. GGUF files have added the 1 that Gemma adds to each norm's weight.
"""

from __future__ import annotations

import math

import numpy as np

from wasmetal.models.architectures.decoder import Decoder
from wasmetal.models.architectures.rope import Rope, dimensions, unscaled
from wasmetal.models.files.model_file import ModelFile
from wasmetal.ops import gelu_mul

PERIOD = 6
"""Every layer of this number sees everything, unless the metadata says otherwise."""
LARGEST = 62
"""Layers of the 27B model, in which scores are divided by the root of embedding_length / heads, not of head_dim. The
metadata does not say."""


class Gemma3(Decoder):
    """The decoder with layers of two kinds."""

    name = "gemma3"
    reads = frozenset({"attention.sliding_window"})
    interleaved_rope = False
    qk_norm = "heads"
    post_norms = True
    gate = staticmethod(gelu_mul)

    def __init__(self, file: ModelFile) -> None:
        """As for other decoders."""
        super().__init__(file)
        c, metadata = self.config, self.metadata
        self.embedding_scale = math.sqrt(c.embedding_length)
        if c.block_count == LARGEST:
            self.attention_scale = 1 / math.sqrt(c.embedding_length / c.head_count)
        base = metadata.positive("rope.freq_base_swa", 10000.0)
        self._local_rope = unscaled(dimensions(metadata, c.head_dim), base)
        pattern = metadata.key("attention.sliding_window_pattern")
        listed = file.fields.get(pattern)
        if isinstance(listed, np.ndarray):
            self._local = [bool(local) for local in listed]
        else:
            period = metadata.count("attention.sliding_window_pattern", PERIOD)
            self._local = [(layer + 1) % period != 0 for layer in range(c.block_count)]
        if len(self._local) != c.block_count:
            raise file.error(f"{pattern} has {len(self._local)} entries for {c.block_count} layers")

    def rope(self, layer: int, context: int) -> Rope | None:
        """One for layers with a window, another for the rest."""
        return self._local_rope if self._window and self._local[layer] else super().rope(layer, context)

    def window(self, layer: int) -> int | None:
        """Of most layers."""
        return self._window if self._local[layer] else None
