"""Write a model of Llama 3.2 1B's shape with random weights, to measure speeds that no small model shows.

    python benchmarks/random_model.py llama-1b-f16.gguf --type F16
    wasmetal bench llm llama-1b-f16.gguf

What it says is noise; how fast it says it is not. The file has 2.5 GB (F16), 1.3 GB (Q8_0) or 0.7 GB (Q4_0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, VOCABULARY, CONTEXT = 2048, 8192, 16, 32, 8, 64, 128_256, 4096


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--type", choices=["F16", "Q8_0", "Q4_0", "Q4_1"], default="F16", help="of the matrices")
    options = parser.parse_args()
    write(options.path, gguf.GGMLQuantizationType[options.type])


def write(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Write the model, its matrices of type ``kind``."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(HEAD)
    # Bytes are the tokens of a text; the rest of the vocabulary is only there for its size.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    writer.add_token_list([*letters, "ab", *(f"<{i}>" for i in range(len(letters) + 1, VOCABULARY))])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCABULARY - 1)

    some = _some_rows(kind)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = np.resize(some, rows * gguf.quant_shape_to_byte_shape((columns,), kind)[0]).reshape(rows, -1)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)

    matrix("token_embd", VOCABULARY, WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", HEADS * HEAD, WIDTH),
            ("attn_k", KV_HEADS * HEAD, WIDTH),
            ("attn_v", KV_HEADS * HEAD, WIDTH),
            ("attn_output", WIDTH, HEADS * HEAD),
            ("ffn_gate", HIDDEN, WIDTH),
            ("ffn_up", HIDDEN, WIDTH),
            ("ffn_down", WIDTH, HIDDEN),
        ):
            matrix(f"{block}.{name}", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def _some_rows(kind: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    """The bytes of 1,009 random rows, a prime number, so that matrices made of them repeat at no round distance."""
    values = np.random.default_rng(0).standard_normal((1009, WIDTH), np.float32) * np.float32(0.02)
    if kind is gguf.GGMLQuantizationType.F16:
        return values.astype(np.float16).view(np.uint8).reshape(-1)
    return gguf.quants.quantize(values, kind).reshape(-1)


if __name__ == "__main__":
    main()
