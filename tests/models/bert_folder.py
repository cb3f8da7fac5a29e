"""The tiny BERT as a folder of Hugging Face, and as sentence-transformers saves one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.models.folder import safetensors
from tests.models.tiny_bert import TOKENS

MODULES = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
PARTS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def bert_tensors(source: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a GGUF file of floats, and those that a whole model has besides."""
    tensors: dict[str, NDArray[Any]] = {}
    for tensor in gguf.GGUFReader(source).tensors:
        *block, module, part = tensor.name.split(".")
        prefix = f"encoder.layer.{block[1]}." if block else ""
        tensors[f"{prefix}{MODULES[module]}.{part}"] = np.array(tensor.data)
    width = len(tensors["embeddings.LayerNorm.weight"])
    positions = np.arange(len(tensors["embeddings.position_embeddings.weight"]))
    return tensors | {
        "pooler.dense.weight": np.ones((width, width), np.float32),
        "embeddings.position_ids": positions[None].astype(np.int64),
    }


def write_bert_folder(folder: Path, source: Path, *, pooling: str | None = "mean", normalize: bool = True) -> Path:
    """The model of a GGUF file of floats; with sentence-transformers' files unless ``pooling`` is None."""
    folder.mkdir()
    reader = gguf.GGUFReader(source)

    def field(name: str) -> Any:
        return reader.fields[f"bert.{name}"].contents()

    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": field("context_length"),
        "num_attention_heads": field("attention.head_count"),
        "num_hidden_layers": field("block_count"),
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": len(TOKENS),
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors(bert_tensors(source)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    if pooling is not None:
        write_modules(folder, {"word_embedding_dimension": 96} | {key: name == pooling for name, key in PARTS.items()})
    if pooling is not None and not normalize:
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps(modules[:2]))
    return folder


def write_modules(folder: Path, pooling: dict[str, Any]) -> None:
    """sentence-transformers' files."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    described = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def spelled() -> list[str]:
    """The vocabulary as BERT spells it."""
    return [token if token in SPECIAL else token[1:] if token.startswith("▁") else f"##{token}" for token in TOKENS]


def tokenizer_json() -> dict[str, Any]:
    """As transformers writes it for BERT."""
    ids = {token: i for i, token in enumerate(spelled())}
    special = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]")]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    options = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return {
        "version": "1.0",
        "truncation": {"max_length": 16, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "added_tokens": [{"id": ids[token], "content": token, "special": True, **flags} for token in SPECIAL],
        "normalizer": {"type": "BertNormalizer", **options},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special[0], {"Sequence": {"id": "A", "type_id": 0}}, special[1]],
            "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in SPECIAL[2:]},
        },
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }
