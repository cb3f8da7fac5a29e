"""Models as folders of Hugging Face, in GGUF's terms: the same names of metadata and tensors.

The folder has ``config.json``, ``tokenizer.json`` (:mod:`~wasmetal.models.hf_tokenizer`), and the weights in
``model.safetensors``, or in the files that ``model.safetensors.index.json`` lists; ``tokenizer_config.json``,
``generation_config.json`` and ``chat_template.jinja`` if there are any. The names and the order of rows are those of
llama.cpp's ``convert_hf_to_gguf.py``. All of it is untrusted.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.dtypes import DType
from wasmetal.models.architectures.bert import Bert
from wasmetal.models.files.gguf import MAX_PARTS, GGUFFile
from wasmetal.models.files.gguf_header import quote
from wasmetal.models.files.model_file import FileTensor, InFile, ModelFile
from wasmetal.models.files.safetensors import Integers, SafetensorsFile, read_json
from wasmetal.models.files.source import Source
from wasmetal.models.hf_config import read_config, typed
from wasmetal.models.hf_embedding import read_embedding
from wasmetal.models.hf_experts import Experts
from wasmetal.models.hf_rope import read_rope
from wasmetal.models.hf_sources import Adjacent, InMemory
from wasmetal.models.hf_tokenizer import tokenizer_fields, wordpiece

MAX_CONFIG = 1 << 20
"""Bytes of each of the smaller JSON files, and of a chat template."""
MAX_INDEX = 8 << 20
_MAX_NORM = 1 << 20
MAX_TOKENIZER = 64 << 20
"""Bytes of ``tokenizer.json``. Qwen2's has 7 MiB, Gemma 3's 32 MiB."""


def open_model_file(path: Path) -> ModelFile:
    """The model at a path: a GGUF file, or a folder of Hugging Face. Raises ModelError."""
    return HFFolder(path) if path.is_dir() else GGUFFile(path)


class HFFolder(ModelFile):
    """A folder of Hugging Face, its files open for reading, checked. Raises ModelError if it cannot be used."""

    def __init__(self, path: Path):
        super().__init__(path)
        if not (path / "config.json").exists():
            raise self.error("a folder without config.json is no model of Hugging Face")
        config = read_json(path / "config.json", MAX_CONFIG)
        self._architecture = architecture = read_config(self, config)
        optional = {
            name: read_json(path / f"{name}.json", MAX_CONFIG) if (path / f"{name}.json").exists() else {}
            for name in ("tokenizer_config", "generation_config")
        }
        self._read_tokenizer(config, optional["tokenizer_config"])
        self._read_roles(config, **optional)
        weights = [SafetensorsFile(path / name) for name in self._weight_files()]
        self.sources = [file.source for file in weights]
        self._headers.update(repr(sorted(config.items())).encode())
        self._headers.update("\0".join(self.fields["tokenizer.ggml.tokens"]).encode())
        self._stored: list[InFile] = []
        self._experts = Experts(self.error)
        for file in weights:
            self._headers.update(file.header)
            for tensor in file.tensors.values():
                self._add(tensor)
            for integers in file.integers.values():
                self._add(integers)
        for joined in self._experts.tensors():
            self._put(joined.name, joined)
        if config.get("tie_word_embeddings"):
            self.tensors.pop("output.weight", None)
        if architecture.rope is not None:
            read_rope(self, config, architecture, self._computed)
        if architecture.name == Bert.name:
            read_embedding(self, config, optional["tokenizer_config"])

    def _in_files(self) -> list[InFile]:
        return self._stored

    def _computed(self, name: str, values: NDArray[np.float32]) -> None:
        """Add a tensor that is in none of the files."""
        source = cast(Source, InMemory(values.reshape(-1).view(np.uint8)))
        self._put(name, FileTensor(name, DType.F32, values.shape, 0, source))

    def _of(self, kind: type, name: str, value: Any) -> Any:
        """A value of the configuration, of a type. Raises ModelError if it is of another."""
        return typed(self, kind, name, value)

    def _weight_files(self) -> list[str]:
        index = self.path / "model.safetensors.index.json"
        if not index.exists():
            return ["model.safetensors"]
        files = read_json(index, MAX_INDEX).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise self.error(f"{index.name} has no weight_map")
        for name in files.values():
            if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name, re.ASCII):
                raise self.error(f"{index.name} names {quote(str(name))}, which is no safetensors file of the folder")
        names = sorted(set(files.values()))
        if len(names) > MAX_PARTS:
            raise self.error(f"{len(names)} files of weights; at most {MAX_PARTS} are supported")
        return names

    def _put(self, name: str, tensor: FileTensor) -> None:
        if name in self.tensors:
            raise self.error(f"the tensor {quote(tensor.name)} occurs twice")
        self.tensors[name] = replace(tensor, name=name)

    def _add(self, stored: FileTensor | Integers) -> None:
        """Add a tensor by GGUF's name, its rows in GGUF's order."""
        architecture = self._architecture
        name = stored.name.removeprefix(architecture.prefix)
        if name.endswith((".rotary_emb.inv_freq", ".position_ids")) or name.startswith(architecture.unused):
            return  # computed, and not trained; or for another task
        self._stored.append(stored)
        if architecture.joined_experts and self._experts.add_joined(stored):
            return
        to, expert = architecture.gguf_name(name)
        if to is None:
            raise self.error(f"the tensor {quote(stored.name)} is not supported")
        if isinstance(stored, Integers):
            raise self.error(f"the tensor {quote(stored.name)} is of type {stored.type}, which is not supported there")
        if expert is not None:
            self._experts.add(to, expert, stored)
        elif architecture.norms_less_one and to.endswith("norm.weight"):
            if stored.size > _MAX_NORM:
                raise self.error(f"{quote(stored.name)} has {stored.size} weights; a norm has at most {_MAX_NORM}")
            self._computed(to, stored.dequantize() + np.float32(1))
        else:
            self._put(to, self._in_order(to, stored))

    def _in_order(self, to: str, stored: FileTensor) -> FileTensor:
        """A tensor with its rows in the order that GGUF has."""
        module, prefix = to.split(".")[-2], self._architecture.name
        if not self._architecture.reordered or module not in ("attn_q", "attn_k"):
            return stored
        count = self.get(f"{prefix}.attention.head_count", int, 1)
        heads = count if module == "attn_q" else self.get(f"{prefix}.attention.head_count_kv", int, count)
        if heads < 1 or stored.shape[0] % (2 * heads):
            raise self.error(f"{quote(stored.name)} has {stored.shape[0]} rows for {heads} heads")
        return replace(stored, source=cast(Source, Adjacent(stored, heads)), offset=0)

    # ---- The tokenizer

    def _read_tokenizer(self, config: dict[str, Any], tokenizer_config: dict[str, Any]) -> None:
        whole, words = self.path / "tokenizer.json", self.path / "vocab.txt"
        if self._architecture.name == Bert.name and not whole.exists() and words.exists():
            found = wordpiece(self._text(words, MAX_TOKENIZER), tokenizer_config)
        else:
            found = read_json(whole, MAX_TOKENIZER)
        self.fields |= tokenizer_fields(found, config.get("vocab_size"), self.error)

    def _text(self, path: Path, most: int) -> str:
        """A text file of at most ``most`` bytes."""
        source = Source(path)
        if source.size > most:
            raise self.error(f"{path.name} has {source.size} bytes; at most {most} are supported")
        try:
            return bytes(source.read(0, source.size)).decode()
        except UnicodeDecodeError:
            raise self.error(f"{path.name} is not valid UTF-8") from None

    def _read_roles(
        self, config: dict[str, Any], tokenizer_config: dict[str, Any], generation_config: dict[str, Any]
    ) -> None:
        """Which tokens begin and end texts, and the chat template."""
        tokenizer, ids = tokenizer_config, {token: i for i, token in enumerate(self.fields["tokenizer.ggml.tokens"])}
        for role in ("bos", "eos"):
            named = tokenizer.get(f"{role}_token")
            named = named.get("content") if isinstance(named, dict) else named
            key = f"{role}_token_id"
            found = ids.get(named) if isinstance(named, str) else None
            if found is None:
                found = generation_config.get(key, config.get(key))
                found = found[0] if isinstance(found, list) and found else found
            if found is not None:
                self.fields[f"tokenizer.ggml.{key}"] = self._of(int, key, found)
        if isinstance(add_bos := tokenizer.get("add_bos_token"), bool):
            self.fields["tokenizer.ggml.add_bos_token"] = add_bos
        template = tokenizer.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
            template = named.get("default", next(iter(named.values()), None))
            if isinstance(with_tools := named.get("tool_use"), str):
                self.fields["tokenizer.chat_template.tool_use"] = with_tools
        if (path := self.path / "chat_template.jinja").exists():
            template = self._text(path, MAX_CONFIG)
        if isinstance(template, str):
            self.fields["tokenizer.chat_template"] = template
