"""safetensors, the file format of weights of Hugging Face, read from untrusted files.

Format: https://github.com/huggingface/safetensors#format. The package of that name is not used: it maps files, and
whoever reads the pages of a mapped file that was shortened meanwhile is killed. Headers are checked as those of GGUF
files are.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
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
_INTEGERS = {"U8": 1, "I64": 8}
"""Types of what is no tensor of weights by itself, and their bytes."""


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The object in a JSON file of at most ``most`` bytes. Raises ModelError."""
    found = read_any_json(path, most)
    if not isinstance(found, dict):
        raise ModelError(printable(f"{path.name}: a JSON object is expected"))
    return found


def read_any_json(path: Path, most: int) -> Any:
    """What a JSON file of at most ``most`` bytes holds. Raises ModelError."""

    def error(what: str) -> ModelError:
        return ModelError(printable(f"{path.name}: {what}"))

    source = Source(path)
    if source.size > most:
        raise error(f"{source.size} bytes; at most {most} are supported")
    return parse_json(bytes(source.read(0, source.size)), error)


def parse_json(text: bytes, error: Callable[[str], ModelError]) -> Any:
    """What a text in JSON describes. Raises what ``error`` makes if it is none, or an object has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    try:
        found: Any = json.loads(text, object_pairs_hook=unique)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:  # half a surrogate pair is a ValueError, too
        raise error(f"not valid JSON: {e}") from e
    return found


@dataclass(frozen=True, slots=True)
class Integers:
    """A tensor of integers: parts of weights, such as the blocks of MXFP4, or no weights at all."""

    name: str
    type: str
    """U8 or I64."""
    shape: tuple[int, ...]
    """Row-major."""
    offset: int
    """Where its bytes begin in the file."""
    source: Source

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return _INTEGERS[self.type] * math.prod(self.shape)


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
        if not isinstance(described, dict):
            raise self.error("a JSON object is expected")
        described.pop("__metadata__", None)
        if len(described) > MAX_TENSORS:
            raise self.error(f"{len(described)} tensors; at most {MAX_TENSORS} are supported")
        self.tensors: dict[str, FileTensor] = {}
        """The tensors of floats by name, in the file's order."""
        self.integers: dict[str, Integers] = {}
        """Those of integers."""
        end = 0
        found = [self._measured(name, tensor, 8 + length) for name, tensor in described.items()]
        for tensor in sorted(found, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self.error(f"tensor {quote(tensor.name)} overlaps another one")
            end = tensor.offset + tensor.nbytes
            if isinstance(tensor, Integers):
                self.integers[tensor.name] = tensor
            else:
                self.tensors[tensor.name] = tensor

    def error(self, what: str) -> ModelError:
        """A ModelError that names the file, to be raised."""
        return ModelError(printable(f"{self.path.name}: {what}"))

    def _measured(self, name: str, described: Any, start: int) -> FileTensor | Integers:
        """A tensor of the header; ``start``: where the file's data begins."""
        match described:
            case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end]}:
                pass
            case _:
                raise self.error(f"tensor {quote(name)} has no dtype, shape and data_offsets")
        if kind not in _TYPES and kind not in _INTEGERS:
            raise self.error(f"tensor {quote(name)} is of type {quote(kind)}; supported: {', '.join(_TYPES)}")
        if not 1 <= len(shape) <= MAX_DIMENSIONS or not all(type(n) is int and n > 0 for n in shape):
            raise self.error(f"tensor {quote(name)} has not 1 to {MAX_DIMENSIONS} positive dimensions")
        nbytes = _INTEGERS[kind] * math.prod(shape) if kind in _INTEGERS else tensor_bytes(_TYPES[kind], shape)
        integers, size = type(begin) is int and type(end) is int, self.source.size - start
        if not integers or not 0 <= begin <= end <= size or end - begin != nbytes:
            raise self.error(f"tensor {quote(name)} ({nbytes} bytes) is not within the file, or of another length")
        if kind in _INTEGERS:
            return Integers(name, kind, tuple(shape), start + begin, self.source)
        return FileTensor(name, _TYPES[kind], tuple(shape), start + begin, self.source)
