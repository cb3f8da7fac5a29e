"""Write a model of Llama 3's shape with random weights, to measure speeds that no small model shows.

    python benchmarks/random_model.py llama-1b-f16.gguf --type F16
    wasmetal bench llm llama-1b-f16.gguf

What it says is noise, without end; how fast it says it is not. The file has 2.5 GB (F16), 1.3 GB (Q8_0) or 0.7 GB
(Q4_0); with ``--shape 8b``, 15 GB, 8 GB or 4.2 GB; with ``--shape 135m``, 270 MB, 144 MB or 76 MB; with ``--shape
tiny``, 7 MB, 4 MB or 2 MB.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CONTEXT = 4096


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    own_output: bool
    """Whether the output matrix is another one than the embeddings."""
    vocabulary: int = 128_256

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Names, rows and columns."""
        yield "token_embd", self.vocabulary, self.width
        if self.own_output:
            yield "output", self.vocabulary, self.width
        for layer in range(self.layers):
            block = f"blk.{layer}"
            yield f"{block}.attn_q", self.heads * self.head, self.width
            yield f"{block}.attn_k", self.kv_heads * self.head, self.width
            yield f"{block}.attn_v", self.kv_heads * self.head, self.width
            yield f"{block}.attn_output", self.width, self.heads * self.head
            yield f"{block}.ffn_gate", self.hidden, self.width
            yield f"{block}.ffn_up", self.hidden, self.width
            yield f"{block}.ffn_down", self.width, self.hidden

    def norms(self) -> Iterator[str]:
        """Names. Each has ``width`` numbers in float32."""
        yield "output_norm"
        for layer in range(self.layers):
            yield from (f"blk.{layer}.attn_norm", f"blk.{layer}.ffn_norm")

    def bytes_a_token(self, type_name: str) -> int:
        """Bytes of weights, as the file has them, that decoding a token reads: all but a table of embeddings."""
        kind = gguf.GGMLQuantizationType[type_name]
        read = [
            rows * gguf.quant_shape_to_byte_shape((columns,), kind)[0]
            for name, rows, columns in self.matrices()
            if name != "token_embd" or not self.own_output
        ]
        return int(sum(read)) + 4 * self.width * len(list(self.norms()))


SHAPES = {
    "135m": Shape(576, 1536, 30, 9, 3, 64, own_output=False, vocabulary=49_152),
    "1b": Shape(2048, 8192, 16, 32, 8, 64, own_output=False),
    "8b": Shape(4096, 14336, 32, 32, 8, 128, own_output=True),
    "tiny": Shape(256, 768, 4, 4, 2, 64, own_output=False, vocabulary=1024),
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--type", choices=["F16", "Q8_0", "Q4_0", "Q4_1"], default="F16", help="of the matrices")
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="1b",
        help="of SmolLM2 135M, Llama 3.2 1B or 3.1 8B; tiny: to try out",
    )
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens")
    options = parser.parse_args()
    write(options.path, options.type, options.shape, options.context)


def write(path: Path, type_name: str, shape_name: str, context: int = CONTEXT) -> None:
    """Write the model, its matrices of the type of that name in GGUF."""
    kind, shape = gguf.GGMLQuantizationType[type_name], SHAPES[shape_name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(shape.head)
    # Bytes are the tokens of a text; the rest of the vocabulary is only there for its size.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    writer.add_token_list([*letters, "ab", *(f"<{i}>" for i in range(len(letters) + 1, shape.vocabulary))])
    writer.add_token_types([1] * shape.vocabulary)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(shape.vocabulary - 1)

    some = _some_rows(kind, shape.width)
    for name, rows, columns in shape.matrices():
        blocks = np.resize(some, rows * gguf.quant_shape_to_byte_shape((columns,), kind)[0]).reshape(rows, -1)
        if rows == shape.vocabulary:
            blocks[-1] = 0  # the end's logit is 0, far from the largest: no text ends before it is as long as it may be
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
    for name in shape.norms():
        writer.add_tensor(f"{name}.weight", np.ones(shape.width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def _some_rows(kind: gguf.GGMLQuantizationType, width: int) -> NDArray[np.uint8]:
    """The bytes of 1,009 random rows, a prime number, so that matrices made of them repeat at no round distance."""
    values = np.random.default_rng(0).standard_normal((1009, width), np.float32) * np.float32(0.02)
    if kind is gguf.GGMLQuantizationType.F16:
        return values.astype(np.float16).view(np.uint8).reshape(-1)
    return gguf.quants.quantize(values, kind).reshape(-1)


if __name__ == "__main__":
    main()
