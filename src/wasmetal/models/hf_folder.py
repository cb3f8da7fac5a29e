"""Models as folders of Hugging Face, in GGUF's terms: the same names of metadata and tensors.

The folder has ``config.json``, ``tokenizer.json`` (:mod:`~wasmetal.models.hf_tokenizer`), and the weights in
``model.safetensors``, or in the files that ``model.safetensors.index.json`` lists; ``tokenizer_config.json``,
``generation_config.json`` and ``chat_template.jinja`` if there are any. The names and the order of rows are those of
llama.cpp's ``convert_hf_to_gguf.py``. All of it is untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.dtypes import DType
from wasmetal.models.files.gguf import MAX_PARTS, GGUFFile
from wasmetal.models.files.gguf_header import quote
from wasmetal.models.files.model_file import FileTensor, ModelFile
from wasmetal.models.files.safetensors import SafetensorsFile, read_json
from wasmetal.models.files.source import Source
from wasmetal.models.hf_config import MODEL, read_config, typed
from wasmetal.models.hf_rope import read_rope
from wasmetal.models.hf_tokenizer import tokenizer_fields

MAX_CONFIG = 1 << 20
"""Bytes of each of the smaller JSON files, and of a chat template."""
MAX_INDEX = 8 << 20
_MAX_NORM = 1 << 20
MAX_TOKENIZER = 64 << 20
"""Bytes of ``tokenizer.json``. Qwen2's has 7 MiB, Gemma 3's 32 MiB."""

_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"(.+\.experts)\.(\d{1,4})(\..+)")
_OTHER = re.compile(r"(model\.embed_tokens|model\.norm|lm_head)\.(weight)")


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
        self._architecture = read_config(self, config)
        self._read_tokenizer(config)
        weights = [SafetensorsFile(path / name) for name in self._weight_files()]
        self.sources = [file.source for file in weights]
        self._headers.update(repr(sorted(config.items())).encode())
        self._headers.update("\0".join(self.fields["tokenizer.ggml.tokens"]).encode())
        self._stored: list[FileTensor] = []
        self._experts: dict[str, dict[int, FileTensor]] = {}
        for file in weights:
            self._headers.update(file.header)
            for stored in file.tensors.values():
                self._add(stored)
        for name, experts in self._experts.items():
            self._stack(name, experts)
        if config.get("tie_word_embeddings"):
            self.tensors.pop("output.weight", None)
        read_rope(self, config, self._architecture, self._computed)

    def _in_files(self) -> list[FileTensor]:
        return self._stored

    def _computed(self, name: str, values: NDArray[np.float32]) -> None:
        """Add a tensor that is in none of the files."""
        source = cast(Source, _InMemory(values.reshape(-1).view(np.uint8)))
        self.tensors[name] = FileTensor(name, DType.F32, values.shape, 0, source)

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

    def _add(self, stored: FileTensor) -> None:
        """Add a tensor by GGUF's name, its rows in GGUF's order."""
        if stored.name.endswith(".rotary_emb.inv_freq"):
            return  # computed, and not trained
        architecture, expert = self._architecture, None
        if found := _LAYER.fullmatch(stored.name):
            module, block, kind = found[2], f"blk.{int(found[1])}.", found[3]
            if one := _EXPERT.fullmatch(module):
                module, expert = one[1] + one[3], int(one[2])
            to = architecture.modules.get(module)
        elif found := _OTHER.fullmatch(stored.name):
            to, block, kind = MODEL[found[1]], "", found[2]
        else:
            to = None
        name = f"{block}{to}.{kind}" if to else ""
        numbered = name.endswith("_exps.weight")
        if to is None or numbered != (expert is not None) or name in self.tensors:
            raise self.error(f"the tensor {quote(stored.name)} is not supported, or occurs twice")
        if expert is not None:
            experts = self._experts.setdefault(name, {})
            if expert in experts:
                raise self.error(f"the tensor {quote(stored.name)} occurs twice")
            self._stored.append(stored)
            experts[expert] = stored
            return
        tensor = replace(stored, name=name)
        if architecture.reordered and to in ("attn_q", "attn_k"):
            prefix = architecture.name
            count = self.get(f"{prefix}.attention.head_count", int, 1)
            heads = count if to == "attn_q" else self.get(f"{prefix}.attention.head_count_kv", int, count)
            if heads < 1 or stored.shape[0] % (2 * heads):
                raise self.error(f"{quote(stored.name)} has {stored.shape[0]} rows for {heads} heads")
            tensor = replace(tensor, source=cast(Source, _Adjacent(stored, heads)), offset=0)
        self._stored.append(stored)
        if architecture.norms_less_one and name.endswith("norm.weight"):
            if stored.size > _MAX_NORM:
                raise self.error(f"{quote(stored.name)} has {stored.size} weights; a norm has at most {_MAX_NORM}")
            self._computed(name, stored.dequantize() + np.float32(1))
        else:
            self.tensors[name] = tensor

    def _stack(self, name: str, experts: dict[int, FileTensor]) -> None:
        """Add one tensor of the same weights of all experts, in their order."""
        parts = [experts[number] for number in sorted(experts)]
        first = parts[0]
        alike = all((part.dtype, part.shape) == (first.dtype, first.shape) for part in parts)
        if not alike or sorted(experts) != list(range(len(parts))):
            raise self.error(f"the experts' {name} are not numbered from 0, or differ in shape or type")
        source = cast(Source, _Stacked(parts))
        self.tensors[name] = FileTensor(name, first.dtype, (len(parts), *first.shape), 0, source)

    # ---- The tokenizer

    def _read_tokenizer(self, config: dict[str, Any]) -> None:
        found = read_json(self.path / "tokenizer.json", MAX_TOKENIZER)
        self.fields |= tokenizer_fields(found, config.get("vocab_size"), self.error)
        self._read_roles(config, {token: i for i, token in enumerate(self.fields["tokenizer.ggml.tokens"])})

    def _read_roles(self, config: dict[str, Any], ids: dict[str, int]) -> None:
        """Which tokens begin and end texts, and the chat template."""
        optional = {
            name: read_json(path, MAX_CONFIG) if (path := self.path / f"{name}.json").exists() else {}
            for name in ("tokenizer_config", "generation_config")
        }
        tokenizer = optional["tokenizer_config"]
        for role in ("bos", "eos"):
            named = tokenizer.get(f"{role}_token")
            named = named.get("content") if isinstance(named, dict) else named
            key = f"{role}_token_id"
            found = ids.get(named) if isinstance(named, str) else None
            if found is None:
                found = optional["generation_config"].get(key, config.get(key))
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
            source = Source(path)
            try:
                template = bytes(source.read(0, min(source.size, MAX_CONFIG))).decode()
            except UnicodeDecodeError:
                raise self.error(f"{path.name} is not valid UTF-8") from None
        if isinstance(template, str):
            self.fields["tokenizer.chat_template"] = template


class _InMemory:
    """In place of a file: bytes that were computed."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data
        self.size = data.size

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        return self._data[offset : offset + nbytes].copy()


class _Adjacent:
    """In place of a file: a matrix with the rows that RoPE rotates together side by side, as GGUF files have them.

    Hugging Face has the first of all pairs of a head, and then the second of all.
    """

    def __init__(self, stored: FileTensor, heads: int) -> None:
        self._stored = stored
        self._heads = heads
        self.size = stored.nbytes

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        stored, size = self._stored, self._stored.shape[0] // self._heads
        row = stored.nbytes // stored.shape[0]
        first, last = offset // row // size, -(-(offset + nbytes) // row // size)  # heads
        data = stored.source.read(stored.offset + first * size * row, (last - first) * size * row)
        pairs = data.reshape(last - first, 2, size // 2, row).swapaxes(1, 2).reshape(-1)
        return pairs[offset - first * size * row :][:nbytes]


class _Stacked:
    """In place of a file: tensors of one shape and type, one after another."""

    def __init__(self, parts: Sequence[FileTensor]) -> None:
        self._parts = parts
        self.size = sum(part.nbytes for part in parts)

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        each, read = self._parts[0].nbytes, np.empty(nbytes, np.uint8)
        done = 0
        while done < nbytes:
            number, begin = divmod(offset + done, each)
            part = self._parts[number]
            some = part.source.read(part.offset + begin, min(each - begin, nbytes - done))
            read[done : done + some.size] = some
            done += some.size
        return read
