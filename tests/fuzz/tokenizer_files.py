"""Tokenizers as model files have them, to be written into a tiny model's file."""

from __future__ import annotations

from typing import Any

import gguf

VOCABULARY = (
    "<unk>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *("▁", "a", "aa", "aaaa", "b", "ab", "▁▁"),
    *(f"z{i}" for i in range(11)),
)


def sentencepiece(w: gguf.GGUFWriter, tokens: list[str]) -> None:
    """A SentencePiece vocabulary instead of the byte-level one of ``tokens``, and of the same size."""
    write(
        w,
        {
            "model": "llama",
            "tokens": VOCABULARY[: len(tokens)],
            "token_type": [2] + [6] * 256 + [1] * (len(tokens) - 257),
            "scores": [0.5 * i for i in range(len(tokens))],
            "unknown_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    )


def write(w: gguf.GGUFWriter, fields: dict[str, Any]) -> None:
    """The fields of a tokenizer: values of JSON."""
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, str):
            w.add_string(key, value)
        elif isinstance(value, bool):
            w.add_bool(key, value)
        elif isinstance(value, int):
            (w.add_uint32 if 0 <= value < 2**32 else w.add_int64)(key, value)
        elif value:
            w.add_array(key, list(value))
