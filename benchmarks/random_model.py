"""Write a model of Llama 3's shape with random weights, to measure speeds that no small model shows.

    python benchmarks/random_model.py llama-1b-f16.gguf --type F16
    wasmetal bench llm llama-1b-f16.gguf

What it says is noise; how fast it says it is not. The file has 2.5 GB (F16), 1.3 GB (Q8_0) or 0.7 GB (Q4_0); with
``--shape 8b``, 15 GB, 8 GB or 4.2 GB.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

VOCABULARY, CONTEXT = 128_256, 4096


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


SHAPES = {
    "1b": Shape(2048, 8192, 16, 32, 8, 64, own_output=False),
    "8b": Shape(4096, 14336, 32, 32, 8, 128, own_output=True),
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--type", choices=["F16", "Q8_0", "Q4_0", "Q4_1"], default="F16", help="of the matrices")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of Llama 3.2 1B, or 3.1 8B")
    options = parser.parse_args()
    write(options.path, options.type, options.shape)


def write(path: Path, type_name: str, shape_name: str) -> None:
    """Write the model, its matrices of the type of that name in GGUF."""
    kind, shape = gguf.GGMLQuantizationType[type_name], SHAPES[shape_name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
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
    writer.add_token_list([*letters, "ab", *(f"<{i}>" for i in range(len(letters) + 1, VOCABULARY))])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCABULARY - 1)

    some = _some_rows(kind, shape.width)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = np.resize(some, rows * gguf.quant_shape_to_byte_shape((columns,), kind)[0]).reshape(rows, -1)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)

    matrix("token_embd", VOCABULARY, shape.width)
    if shape.own_output:
        matrix("output", VOCABULARY, shape.width)
    writer.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", shape.heads * shape.head, shape.width),
            ("attn_k", shape.kv_heads * shape.head, shape.width),
            ("attn_v", shape.kv_heads * shape.head, shape.width),
            ("attn_output", shape.width, shape.heads * shape.head),
            ("ffn_gate", shape.hidden, shape.width),
            ("ffn_up", shape.hidden, shape.width),
            ("ffn_down", shape.width, shape.hidden),
        ):
            matrix(f"{block}.{name}", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{name}.weight", np.ones(shape.width, np.float32))
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
