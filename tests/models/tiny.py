"""A tiny random Llama (or another decoder) in GGUF, small enough that every test can write its own.

Its vocabulary is a working byte-level BPE (256 bytes, a few merges, four control tokens) with a ChatML template, so
that a tokenizer, a chat and a guest can run on it. What it says is noise.
"""

import math
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

EXPERT_HIDDEN = 64
"""Elements between the two products of an expert, except in Mixtral."""
MIXTURES = {"qwen3moe": 7, "gpt-oss": 6}
"""Architectures that always have experts, and how many they have here unless a test says otherwise."""

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


def add_architecture(w: gguf.GGUFWriter, architecture: str, window: int, experts: int) -> None:
    """Metadata that not every architecture has."""
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(max(1, experts // 3))
    if architecture in MIXTURES:
        w.add_expert_feed_forward_length(EXPERT_HIDDEN)
    if window:
        w.add_sliding_window(window)
    if architecture == "gemma3":
        w.add_sliding_window_pattern(2)
    if architecture == "granite":
        w.add_attention_scale(0.17)
        w.add_embedding_scale(3.0)
        w.add_residual_scale(0.3)
        w.add_logit_scale(5.0)


def add_rope_scaling(w: gguf.GGUFWriter, scaling: str, context: int, pairs: int) -> None:
    def factors(name: str, most: float) -> None:
        w.add_tensor(f"rope_{name}.weight", np.linspace(1, most, pairs, dtype=np.float32))

    if scaling == "llama3":
        factors("freqs", 8)
    elif scaling != "none":
        w.add_rope_scaling_type(gguf.RopeScalingType(scaling))
        w.add_rope_scaling_factor(4.0)
        w.add_rope_scaling_orig_ctx_len(context // 4)
    if scaling == "longrope":
        w.add_rope_scaling_attn_factors(1.2)
        factors("factors_long", 8)
        factors("factors_short", 2)


def layer_shapes(
    architecture: str, dim: int, heads: int, kv_heads: int, head_dim: int, hidden: int, experts: int
) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer."""
    widths = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
    shapes: dict[str, tuple[int, ...]] = {"attn_norm.weight": (dim,)}
    shapes |= {f"attn_{kind}.weight": (width, dim) for kind, width in widths.items()}
    if architecture in ("qwen2", "gpt-oss"):
        shapes |= {f"attn_{kind}.bias": (width,) for kind, width in widths.items()}
    shapes |= {"attn_output.weight": (dim, widths["q"]), "ffn_norm.weight": (dim,)}
    shapes |= {"ffn_gate.weight": (hidden, dim), "ffn_up.weight": (hidden, dim)}
    shapes |= {"ffn_down.weight": (dim, hidden)}
    if experts:
        for name in ("gate", "up", "down"):
            shapes[f"ffn_{name}_exps.weight"] = (experts, *shapes.pop(f"ffn_{name}.weight"))
        shapes["ffn_gate_inp.weight"] = (experts, dim)
    if architecture == "gpt-oss":
        for name in ("gate_inp", "gate_exps", "up_exps", "down_exps"):
            shapes[f"ffn_{name}.bias"] = shapes[f"ffn_{name}.weight"][:-1]
        shapes |= {"attn_output.bias": (dim,), "attn_sinks.weight": (heads,)}
        shapes["post_attention_norm.weight"] = shapes.pop("ffn_norm.weight")
    if architecture in ("qwen3", "qwen3moe", "gemma3"):
        shapes |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
    if architecture in ("olmo2", "gemma3"):
        shapes |= {"post_attention_norm.weight": (dim,), "post_ffw_norm.weight": (dim,)}
    if architecture == "olmo2":
        shapes |= {"attn_q_norm.weight": (widths["q"],), "attn_k_norm.weight": (widths["k"],)}
        del shapes["attn_norm.weight"], shapes["ffn_norm.weight"]
    if architecture == "phi3":
        shapes |= {"attn_qkv.weight": (sum(widths.values()), dim), "ffn_up.weight": (2 * hidden, dim)}
        del shapes["attn_q.weight"], shapes["attn_k.weight"], shapes["attn_v.weight"], shapes["ffn_gate.weight"]
    return shapes


def write_tiny_llama(
    path: str | Path,
    *,
    architecture: str = "llama",
    qtype: str = "Q4_1",
    value_qtype: str | None = None,
    expert_qtype: str | None = None,
    seed: int = 0,
    blocks: int = 2,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 16,
    hidden: int = 160,
    context: int = 256,
    tied: bool = True,
    rope_scaling: str = "none",
    window: int = 0,
    experts: int | None = None,
    tokens: Sequence[str] | None = None,
    tokenizer: Callable[[gguf.GGUFWriter, list[str]], None] = add_tokenizer,
) -> Path:
    """Write the file and return its path.

    ``qtype`` (any that weights can have) is the type of every matrix, except that of attn_v and ffn_up if
    ``value_qtype`` gives another, those of experts if ``expert_qtype`` does, and of routers. ``architecture``: any.
    ``rope_scaling``: "none", "linear" or "yarn" (factor 4), or by tensors of factors "llama3" or "longrope".
    ``window``: how many positions a row sees, 0 for all.
    ``experts``: how many there are, of which each row uses a third; 0 for none. ``tokens``: another vocabulary, which
    ``tokenizer`` must write into the file.
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
    w.add_rope_freq_base(1e6 if architecture == "gemma3" else 1e4)
    experts = MIXTURES.get(architecture, 0) if experts is None else experts
    add_architecture(w, architecture, window, experts)
    w.add_rope_dimension_count(head_dim)
    w.add_vocab_size(len(tokens))
    add_rope_scaling(w, rope_scaling, context, head_dim // 2)
    tokenizer(w, tokens)

    def matrix(name: str, *shape: int, kind: str = qtype) -> None:
        data = weights(rng, kind, math.prod(shape[:-1]), shape[-1])
        w.add_tensor(name, data.reshape(*shape[:-1], -1), raw_dtype=gguf.GGMLQuantizationType[kind])

    def vector(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape).astype(np.float32)
        w.add_tensor(name, 1 + 0.1 * values if "norm" in name else values)

    matrix("token_embd.weight", len(tokens), dim)
    for i in range(blocks):
        width = EXPERT_HIDDEN if architecture in MIXTURES else hidden
        for name, shape in layer_shapes(architecture, dim, heads, kv_heads, head_dim, width, experts).items():
            if name == "ffn_gate_inp.weight":  # files have it as float32
                matrix(f"blk.{i}.{name}", *shape, kind="F32")
            elif len(shape) > 1 and not name.endswith(".bias"):
                other = value_qtype if name in ("attn_v.weight", "ffn_up.weight", "ffn_up_exps.weight") else None
                other = expert_qtype if expert_qtype and "_exps" in name else other
                matrix(f"blk.{i}.{name}", *shape, kind=other or qtype)
            else:
                vector(f"blk.{i}.{name}", *shape)
    vector("output_norm.weight", dim)
    if not tied:
        matrix("output.weight", len(tokens), dim)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
