"""A tiny random Llama (or another decoder) in GGUF, small enough that every test can write its own.

Its vocabulary is a working byte-level BPE (256 bytes, a few merges, four control tokens) with a ChatML template, so
that a tokenizer, a chat and a guest can run on it. What it says is noise.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

from tests.ops.tensors import random_blocks

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

MERGES = (
    "h e",
    "t he",
    "Ġ t",
    "Ġ a",
    "i n",
    "l l",
    "he ll",
    "hell o",
    "Ġt he",
    "o r",
    "Ġ w",
    "Ġw or",
    "l d",
    "Ġwor ld",
)
RANDOM_SCALES = {
    "Q2_K": 1 / 10,
    "Q3_K": 1 / 30,
    "Q4_K": 1 / 200,
    "Q5_K": 1 / 400,
    "Q6_K": 1 / 600,
    "IQ4_NL": 1 / 30,
    "IQ4_XS": 1 / 600,
}
"""Types that the gguf package cannot quantize to: their blocks are random, with scales up to this, which makes most
weights less than 1."""

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level BPE vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    stand_in = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [stand_in[byte] for byte in range(256)]


def vocabulary() -> list[str]:
    return [*CONTROL, *byte_alphabet(), *("".join(merge.split()) for merge in MERGES)]


def add_tokenizer(w: gguf.GGUFWriter, tokens: list[str]) -> None:
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if t in CONTROL else gguf.TokenType.NORMAL for t in tokens])
    w.add_token_merges(MERGES)
    w.add_bos_token_id(0)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)


def weights(rng: np.random.Generator, kind: str, rows: int, columns: int) -> np.ndarray:
    """The data of a random matrix of this type."""
    t = gguf.GGMLQuantizationType[kind]
    if kind in RANDOM_SCALES:
        return random_blocks(rng, t, rows, columns, RANDOM_SCALES[kind] / np.sqrt(columns))
    values = rng.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(np.float32(columns))
    return quantize(values, t)


def write_tiny_llama(
    path: str | Path,
    *,
    architecture: str = "llama",
    qtype: str = "Q4_1",
    value_qtype: str | None = None,
    seed: int = 0,
    blocks: int = 2,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 16,
    hidden: int = 160,
    context: int = 256,
    tied: bool = True,
    rope_scaling: str = "none",
    tokens: Sequence[str] | None = None,
    tokenizer: Callable[[gguf.GGUFWriter, list[str]], None] = add_tokenizer,
) -> Path:
    """Write the file and return its path.

    ``qtype`` (any that weights can have) is the type of every matrix, except that of attn_v and ffn_up if
    ``value_qtype`` gives another. ``architecture``: "llama", or "qwen2", which has biases on queries, keys and values.
    ``rope_scaling``: "none", "linear" (factor 4) or "llama3" (a tensor of factors). ``tokens``: another vocabulary,
    which ``tokenizer`` must write into the file.
    """
    path = Path(path)
    rng = np.random.default_rng(seed)
    dim = heads * head_dim
    tokens = vocabulary() if tokens is None else list(tokens)

    w = gguf.GGUFWriter(path, architecture)
    w.add_name("Tiny random Llama")
    w.add_context_length(context)
    w.add_embedding_length(dim)
    w.add_block_count(blocks)
    w.add_feed_forward_length(hidden)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(head_dim)
    w.add_vocab_size(len(tokens))
    if rope_scaling == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(4.0)

    tokenizer(w, tokens)

    def matrix(name: str, rows: int, columns: int, kind: str = qtype) -> None:
        w.add_tensor(name, weights(rng, kind, rows, columns), raw_dtype=gguf.GGMLQuantizationType[kind])

    def norm(name: str) -> None:
        w.add_tensor(name, 1 + 0.1 * rng.standard_normal(dim).astype(np.float32))

    matrix("token_embd.weight", len(tokens), dim)
    if rope_scaling == "llama3":
        w.add_tensor("rope_freqs.weight", np.linspace(1, 8, head_dim // 2, dtype=np.float32))
    for i in range(blocks):
        block = f"blk.{i}."
        norm(block + "attn_norm.weight")
        matrix(block + "attn_q.weight", heads * head_dim, dim)
        matrix(block + "attn_k.weight", kv_heads * head_dim, dim)
        matrix(block + "attn_v.weight", kv_heads * head_dim, dim, value_qtype or qtype)
        if architecture == "qwen2":
            for kind, width in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                w.add_tensor(f"{block}attn_{kind}.bias", rng.standard_normal(width * head_dim).astype(np.float32))
        matrix(block + "attn_output.weight", dim, heads * head_dim)
        norm(block + "ffn_norm.weight")
        matrix(block + "ffn_gate.weight", hidden, dim)
        matrix(block + "ffn_up.weight", hidden, dim, value_qtype or qtype)
        matrix(block + "ffn_down.weight", dim, hidden)
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", len(tokens), dim)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
