"""What a folder of an embedding model says beside ``config.json``: how a text's vector is made of its rows.

As sentence-transformers saves it: ``modules.json``, the pooling's ``config.json`` in a folder that it names, and
``sentence_bert_config.json``. A folder that has none of them is a plain encoder. All of it is untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wasmetal.models.files.gguf_header import quote
from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.files.safetensors import read_any_json, read_json
from wasmetal.models.hf_config import typed

MAX_FILE = 1 << 16
"""Bytes of each of the files."""
_POOLINGS = {"mean": 1, "cls": 2}
"""llama.cpp's numbers."""
_OLD_NAMES = {"mean_tokens": "mean", "cls_token": "cls"}
"""Of ``pooling_mode_…`` as older versions write them, one key for each."""
_POSITIONS = "position_embd.weight"


def read_embedding(file: ModelFile, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """Add the metadata of an embedding model to a file's, which has its tensors already. Raises ModelError.

    ``config``: the model's configuration; ``tokenizer``: what ``tokenizer_config.json`` holds.
    """
    if (kinds := config.get("type_vocab_size")) is not None:
        file.fields["tokenizer.ggml.token_type_count"] = typed(file, int, "type_vocab_size", kinds)
    if (file.path / "modules.json").exists():
        _read_modules(file)
    path = file.path / "sentence_bert_config.json"
    transformer = read_json(path, MAX_FILE) if path.exists() else {}
    if transformer.get("do_lower_case") is True:
        file.fields["tokenizer.ggml.normalizer.lowercase"] = True
    most = transformer.get("max_seq_length")
    most = tokenizer.get("model_max_length") if most is None else typed(file, int, "max_seq_length", most)
    if type(most) is int:
        _shorten(file, most)


def _read_modules(file: ModelFile) -> None:
    """Pooling, and whether vectors are scaled."""
    modules = read_any_json(file.path / "modules.json", MAX_FILE)
    kinds, paths = [], []
    for module in modules if isinstance(modules, list) else [None]:
        match module:
            case {"type": str(kind), "path": str(path)}:
                kinds.append(kind.rpartition(".")[2])
                paths.append(path)
            case _:
                raise file.error("modules.json is no list of modules with types and paths")
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or paths[0] not in ("", "."):
        found = quote(", ".join(f"{kind} in {path or 'the folder'}" for kind, path in zip(kinds, paths, strict=True)))
        raise file.error(
            f"modules.json has {found}; Transformer in the folder itself, Pooling, and then Normalize or nothing are "
            "supported"
        )
    if not re.fullmatch(r"\w[\w.-]*", paths[1], re.ASCII):
        raise file.error(f"modules.json has the pooling in {quote(paths[1])}, which is no folder in this one")
    if not (config := file.path / paths[1] / "config.json").exists():
        raise file.error(f"modules.json has the pooling in {paths[1]}, and there is no {paths[1]}/{config.name}")
    file.fields["bert.pooling_type"] = _pooling(file, read_json(config, MAX_FILE))
    file.fields["embedding.normalized"] = kinds[-1] == "Normalize"


def _pooling(file: ModelFile, config: Mapping[str, Any]) -> int:
    """The pooling's number."""
    modes = config.get("pooling_mode")
    if modes is None:
        prefix = "pooling_mode_"
        keys = [key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value]
        modes = [_OLD_NAMES.get(key, key) for key in keys] or ["mean"]
    match modes:
        case str(mode) | [str(mode)] if mode in _POOLINGS:
            return _POOLINGS[mode]
        case _:
            raise file.error(f"the pooling is {quote(str(modes))}; supported: {', '.join(_POOLINGS)}")


def _shorten(file: ModelFile, most: int) -> None:
    """Have texts cut off, or refused, after ``most`` tokens: there are no more positions than that."""
    positions, key = file.tensors.get(_POSITIONS), "bert.context_length"
    count = file.get(key, int, 0)
    if positions and 0 < most < count and positions.shape == (count, *positions.shape[1:]):
        file.fields[key] = most
        file.tensors[_POSITIONS] = replace(positions, shape=(most, *positions.shape[1:]))
