"""The header of a GGUF file, read from untrusted files: nothing is allocated from it that has not been checked."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

from wasmetal.errors import ModelError
from wasmetal.models.files.source import Source
from wasmetal.models.packed import Packed

MAX_HEADER = 64 << 20
"""Bytes that metadata and tensor descriptions may take; the largest vocabularies in use need about 20 MiB."""
MAX_KEY = 65535
_CHUNK = 1 << 20
"""Bytes of the header that are read at a time."""
MAX_FIELDS = MAX_TENSORS = 1 << 16
"""Metadata fields, and tensors. A layer with a tensor for each of 256 experts has about 800."""
MAX_STRINGS = 1 << 21
"""Elements of all arrays of strings: the tokens and merges of a vocabulary."""

_VERSIONS = (2, 3)
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


@dataclass(slots=True)
class Bounds:
    """What the headers of a model's files, all together, may still take."""

    nbytes: int = MAX_HEADER
    tensors: int = MAX_TENSORS
    fields: int = MAX_FIELDS
    strings: int = MAX_STRINGS


class Header:
    """A cursor over the header: nothing is read, or sized, past the end of the file or what the bounds leave."""

    def __init__(self, source: Source, error: Callable[[str], ModelError], bounds: Bounds):
        self._source = source
        self._error = error
        self._bounds = bounds
        self._end = min(source.size, bounds.nbytes)
        self._buffer = np.empty(self._end, np.uint8)
        self._filled = 0
        self.bytes = self._buffer.data.toreadonly()
        """The header, as far as it has been read."""
        self.position = 0

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
        tensors, fields = self.number("<Q"), self.number("<Q")
        if tensors > self._bounds.tensors or fields > self._bounds.fields:
            raise self._error(
                f"{tensors} tensors and {fields} metadata fields; at most {MAX_TENSORS} and {MAX_FIELDS} are supported"
            )
        self._bounds.tensors -= tensors
        self._bounds.fields -= fields
        return tensors, fields

    def finish(self) -> None:
        """All is read: what it took is no longer there for the headers of the model's other files."""
        self._bounds.nbytes -= self.position

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
            self._bounds.strings -= count
            if self._bounds.strings < 0:
                raise self._error(f"{what} has {count} strings; at most {MAX_STRINGS} in all arrays are supported")
            return Packed((self.string(what).encode() for _ in range(count)), bytes.decode)
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
            where = "the end of the file" if self._end == self._source.size else f"the supported {MAX_HEADER} bytes"
            raise self._error(f"truncated or corrupted: the header goes past {where}")
        self.position += nbytes
        if self.position > self._filled:
            more = min(max(self.position - self._filled, _CHUNK), self._end - self._filled)
            self._source.read_into(self._filled, self._buffer[self._filled : self._filled + more])
            self._filled += more
        return self.position - nbytes


def quote(text: str) -> str:
    """A name from the file, quoted so that it prints on one line."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
