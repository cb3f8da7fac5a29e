"""GGUF, the model file format of llama.cpp, read from untrusted files.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.

The ``gguf`` package supplies enumerations and the reference dequantization. Its reader is not used: it trusts the
header's counts and lengths. Here each one is checked against the file's size before anything is allocated from it, so
a hostile file costs at most some 250 MiB of memory, four times MAX_HEADER.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from wasmetal.errors import ModelError, OpError, printable
from wasmetal.kernels.dtypes import BY_NUMBER, DType
from wasmetal.models.files.repack import REPACKED, Repacked
from wasmetal.models.files.source import Source

MAX_HEADER = 64 << 20
"""Bytes that metadata and tensor descriptions may take; the largest vocabularies in use need about 20 MiB."""
MAX_KEY = 65535
_CHUNK = 1 << 20
"""Bytes of the header that are read at a time."""
MAX_FIELDS = MAX_TENSORS = 1 << 16
"""Metadata fields, and tensors. A layer with a tensor for each of 256 experts has about 800."""
MAX_STRINGS = 1 << 21
"""Elements of all arrays of strings: the tokens and merges of a vocabulary."""
MAX_DIMENSIONS = 4

_VERSIONS = (2, 3)
_TYPES = {number: dtype for number, dtype in BY_NUMBER.items() if dtype is not DType.Q8_16}
"""The types of a file that are read as they are, by number."""
_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of a file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    """Row-major: rows before columns (the file's own order is the reverse)."""
    offset: int
    """Where its bytes begin in the file."""
    source: Source
    repacked: Repacked | None = None
    """What it is in the file, if that is a type that becomes ``dtype`` when it is read."""

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return math.prod(self.shape[:-1]) * (self.repacked or self.dtype).row_bytes(self.shape[-1])

    @property
    def data(self) -> NDArray[np.uint8]:
        """The tensor's bytes as ``dtype``, read from the file. Raises ModelError if it has been shortened."""
        return self.repacked(self._stored) if self.repacked else self._stored

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def dequantize(self) -> NDArray[np.float32]:
        """The values as float32 of ``shape``."""
        kind = self.repacked.type if self.repacked else GGMLQuantizationType(self.dtype.value)
        rows = self._stored.reshape(-1, (self.repacked or self.dtype).row_bytes(self.shape[-1]))
        if self.dtype in (DType.F32, DType.F16):
            rows = rows.view(np.float32 if self.dtype is DType.F32 else np.float16)
        values: NDArray[np.float32] = dequantize(rows, kind)
        return values.reshape(self.shape)

    @property
    def _stored(self) -> NDArray[np.uint8]:
        return self.source.read(self.offset, self.nbytes)


class GGUFFile:
    """A GGUF file, open for reading, its header checked. Raises ModelError if it is malformed."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.source = Source(self.path, self.error)
        if not self.source.size:
            raise self.error("an empty file is not a GGUF file")
        header = _Header(self.source, self.error)
        self.fields: dict[str, Any] = {}
        """Metadata: int, float, bool, str, list[str] or a NumPy array by key."""
        self.tensors: dict[str, GGUFTensor] = {}
        """The tensors by name, in the file's order."""

        tensors, fields = header.start()
        if tensors > MAX_TENSORS or fields > MAX_FIELDS:
            raise self.error(
                f"{tensors} tensors and {fields} metadata fields; at most {MAX_TENSORS} and {MAX_FIELDS} are supported"
            )
        for _ in range(fields):
            key = header.string("a key", MAX_KEY)
            if key in self.fields:
                raise self.error(f"the key {_quote(key)} occurs twice")
            self.fields[key] = header.value(_quote(key))
        self._read_tensors(header, tensors)
        self._header = header.bytes[: header.position]

    def get(self, key: str, kind: type[T], default: D) -> T | D:
        """The metadata value of ``key``, or ``default`` if there is none. Raises ModelError if it is not a ``kind``."""
        if key not in self.fields:
            return default
        value = self.fields[key]
        if type(value) is not kind:
            raise self.error(f"{key} should be of type {kind.__name__}, not {type(value).__name__}")
        return value

    def require(self, key: str, kind: type[T]) -> T:
        """The metadata value of ``key``. Raises ModelError if it is missing or not a ``kind``."""
        value = self.get(key, kind, None)
        if value is None:
            raise self.error(f"the metadata has no {key}")
        return value

    def digest(self) -> bytes:
        """32 bytes that identify the file: a SHA-256 of its header and of the beginning of every tensor."""
        sha256 = hashlib.sha256(self._header)
        for tensor in self.tensors.values():
            sha256.update(self.source.read(tensor.offset, min(tensor.nbytes, 4096)).data)
        return sha256.digest()

    def error(self, what: str) -> ModelError:
        """A ModelError that names the file, to be raised. What it quotes of the file is made printable."""
        return ModelError(printable(f"{self.path.name}: {what}"))

    def _read_tensors(self, header: _Header, count: int) -> None:
        described = []
        for _ in range(count):
            name = header.string("a tensor's name", MAX_KEY)
            dimensions = header.number("<I")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self.error(
                    f"tensor {_quote(name)} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are supported"
                )
            shape = tuple(header.number("<Q") for _ in range(dimensions))[::-1]
            described.append((name, shape, header.number("<I"), header.number("<Q")))

        alignment = self.get("general.alignment", int, 32)
        if alignment < 8 or alignment & (alignment - 1) or alignment > 65536:
            raise self.error(f"general.alignment is {alignment}; a power of two from 8 to 65536 is expected")
        start = -(-header.position // alignment) * alignment
        end = 0
        for name, shape, kind, offset in sorted(described, key=lambda tensor: tensor[3]):
            dtype, repacked, nbytes = self._measure(name, shape, kind)
            if offset % alignment or start + offset + nbytes > self.source.size:
                raise self.error(
                    f"tensor {_quote(name)} ({nbytes} bytes at {offset}) is misaligned or ends past the end of the file"
                )
            if offset < end:
                raise self.error(f"tensor {_quote(name)} overlaps another one")
            end = offset + nbytes
            if name in self.tensors:
                raise self.error(f"tensor {_quote(name)} occurs twice")
            self.tensors[name] = GGUFTensor(name, dtype, shape, start + offset, self.source, repacked)

    def _measure(self, name: str, shape: tuple[int, ...], kind: int) -> tuple[DType, Repacked | None, int]:
        """The type of a tensor, what it is in the file if it is repacked, and its length there.

        The length is Python's integer, which cannot overflow.
        """
        repacked = REPACKED.get(kind)
        dtype = repacked.dtype if repacked else _TYPES.get(kind)
        if dtype is None:
            supported = ", ".join(
                _type_name(number) for number in sorted({*_TYPES, *REPACKED}) if number != DType.I32.value
            )
            raise self.error(f"tensor {_quote(name)} is of type {_type_name(kind)}; supported: {supported}")
        try:
            if min(shape) < 1:
                raise OpError(f"shape {shape} is empty")
            return dtype, repacked, math.prod(shape[:-1]) * (repacked or dtype).row_bytes(shape[-1])
        except OpError as e:
            raise self.error(f"tensor {_quote(name)}: {e}") from e


class _Header:
    """A cursor over the header: nothing is read, or sized, past the end of the file or MAX_HEADER."""

    def __init__(self, source: Source, error: Callable[[str], ModelError]):
        self._source = source
        self._error = error
        self._end = min(source.size, MAX_HEADER)
        self._buffer = np.empty(self._end, np.uint8)
        self._filled = 0
        self.bytes = self._buffer.data.toreadonly()
        """The header, as far as it has been read."""
        self.position = 0
        self._strings = 0
        """How many elements the arrays of strings have had until now."""

    def start(self) -> tuple[int, int]:
        """Check magic and version; return the counts of tensors and of metadata fields."""
        magic = bytes(self.bytes[self._take(min(4, self._end)) : 4])
        if magic != b"GGUF":
            raise self._error(f"begins with {magic!r}, not b'GGUF': not a GGUF file")
        version = self.number("<I")
        if version & 0xFFFF == 0 and version:
            raise self._error("a big-endian GGUF file; only little-endian ones are supported")
        if version not in _VERSIONS:
            raise self._error(f"GGUF version {version}; supported: {', '.join(map(str, _VERSIONS))}")
        return self.number("<Q"), self.number("<Q")

    def number(self, code: str) -> Any:
        """The next number, of a ``struct`` code."""
        at = self._take(struct.calcsize(code))
        return struct.unpack_from(code, self.bytes, at)[0]

    def string(self, what: str, limit: int = MAX_HEADER) -> str:
        """The next string."""
        length = self.number("<Q")
        if length > limit:
            raise self._error(f"{what} of {length} bytes; at most {limit} are supported")
        at = self._take(length)
        try:
            return str(self.bytes[at : at + length], "utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} is not valid UTF-8") from None

    def value(self, what: str) -> Any:
        """The next value, with its type before it."""
        kind = self._kind(what)
        if kind is not GGUFValueType.ARRAY:
            return self.string(what) if kind is GGUFValueType.STRING else self.number(_SCALARS[kind])
        kind, count = self._kind(what), self.number("<Q")
        if kind is GGUFValueType.ARRAY:
            raise self._error(f"{what} is an array of arrays, which is not supported")
        if kind is GGUFValueType.STRING:
            self._strings += count
            if self._strings > MAX_STRINGS:
                raise self._error(f"{what} has {count} strings; at most {MAX_STRINGS} in all arrays are supported")
            return [self.string(what) for _ in range(count)]
        dtype = np.dtype(_SCALARS[kind])
        if not count:
            return np.empty(0)
        at = self._take(count * dtype.itemsize)
        return np.frombuffer(self.bytes, dtype, count, at)

    def _kind(self, what: str) -> GGUFValueType:
        number = self.number("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self._error(f"{what} has the unknown type {number}") from None

    def _take(self, nbytes: int) -> int:
        """Skip the next bytes; return the offset at which they begin."""
        if nbytes > self._end - self.position:
            where = "the end of the file" if self._end < MAX_HEADER else f"the supported {MAX_HEADER} bytes"
            raise self._error(f"truncated or corrupted: the header goes past {where}")
        self.position += nbytes
        if self.position > self._filled:
            more = min(max(self.position - self._filled, _CHUNK), self._end - self._filled)
            self._source.read_into(self._filled, self._buffer[self._filled : self._filled + more])
            self._filled += more
        return self.position - nbytes


def _type_name(number: int) -> str:
    """A tensor type that ggml knows, by name."""
    try:
        name: str = GGMLQuantizationType(number).name
        return name
    except ValueError:
        return f"number {number}"


def _quote(text: str) -> str:
    """A name from the file, quoted so that it prints on one line."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
