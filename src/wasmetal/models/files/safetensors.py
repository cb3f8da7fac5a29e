"""safetensors, the file format of weights of Hugging Face, read from untrusted files.

Format: https://github.com/huggingface/safetensors#format. The package of that name is not used: it maps files, and
whoever reads the pages of a mapped file that was shortened meanwhile is killed. Headers are checked as those of GGUF
files are.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wasmetal.errors import ModelError, printable
from wasmetal.kernels.dtypes import DType, tensor_bytes
from wasmetal.models.files.gguf import MAX_DIMENSIONS
from wasmetal.models.files.gguf_header import MAX_TENSORS, quote
from wasmetal.models.files.model_file import FileTensor
from wasmetal.models.files.source import Source

MAX_HEADER = 8 << 20
"""Bytes of a header. A tensor takes about 100."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TYPES = {name: dtype for name, dtype in DType.__members__.items() if name in ("F32", "F16", "BF16")}


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The object in a JSON file of at most ``most`` bytes. Raises ModelError."""

    def error(what: str) -> ModelError:
        return ModelError(printable(f"{path.name}: {what}"))

    source = Source(path)
    if source.size > most:
        raise error(f"{source.size} bytes; at most {most} are supported")
    return parse_json(bytes(source.read(0, source.size)), error)


def parse_json(text: bytes, error: Callable[[str], ModelError]) -> dict[str, Any]:
    """The object that a text in JSON describes. Raises what ``error`` makes if it is none, or has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    try:
        found = json.loads(text, object_pairs_hook=unique)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:  # half a surrogate pair is a ValueError, too
        raise error(f"not valid JSON: {e}") from e
    if not isinstance(found, dict):
        raise error("a JSON object is expected")
    return found


class SafetensorsFile:
    """A safetensors file, open for reading, its header checked. Raises ModelError if it is malformed."""

    def __init__(self, path: Path):
        self.path = path
        self.source = Source(path)
        if self.source.size < 8:
            raise self.error("truncated: a safetensors file begins with the length of its header")
        (length,) = struct.unpack("<Q", bytes(self.source.read(0, 8)))
        if length > min(MAX_HEADER, self.source.size - 8):
            raise self.error(f"a header of {length} bytes: past the end of the file, or the supported {MAX_HEADER}")
        self.header = bytes(self.source.read(8, length))
        described = parse_json(self.header, self.error)
        described.pop("__metadata__", None)
        if len(described) > MAX_TENSORS:
            raise self.error(f"{len(described)} tensors; at most {MAX_TENSORS} are supported")
        self.tensors: dict[str, FileTensor] = {}
        """The tensors by name, in the file's order."""
        start, size = 8 + length, self.source.size - 8 - length
        found = [self._measured(name, tensor, size) for name, tensor in described.items()]
        end = 0
        for name, dtype, shape, offset, nbytes in sorted(found, key=lambda tensor: tensor[3]):
            if offset < end:
                raise self.error(f"tensor {quote(name)} overlaps another one")
            end = offset + nbytes
            self.tensors[name] = FileTensor(name, dtype, shape, start + offset, self.source)

    def error(self, what: str) -> ModelError:
        """A ModelError that names the file, to be raised."""
        return ModelError(printable(f"{self.path.name}: {what}"))

    def _measured(self, name: str, tensor: Any, size: int) -> tuple[str, DType, tuple[int, ...], int, int]:
        """Name, type, shape, and where the bytes are among ``size`` bytes of data: offset and length."""
        match tensor:
            case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end]}:
                pass
            case _:
                raise self.error(f"tensor {quote(name)} has no dtype, shape and data_offsets")
        if kind not in _TYPES:
            raise self.error(f"tensor {quote(name)} is of type {quote(kind)}; supported: {', '.join(_TYPES)}")
        if not 1 <= len(shape) <= MAX_DIMENSIONS or not all(type(n) is int and n > 0 for n in shape):
            raise self.error(f"tensor {quote(name)} has not 1 to {MAX_DIMENSIONS} positive dimensions")
        dtype = _TYPES[kind]
        nbytes = tensor_bytes(dtype, shape)
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end <= size or end - begin != nbytes:
            raise self.error(f"tensor {quote(name)} ({nbytes} bytes) is not within the file, or of another length")
        return name, dtype, tuple(shape), begin, nbytes
