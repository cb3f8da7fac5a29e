"""A model as it lies in files, whatever their format: metadata by GGUF's keys, and tensors by GGUF's names."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from wasmetal.errors import ModelError, printable
from wasmetal.kernels.dtypes import DType, tensor_bytes
from wasmetal.models.files.repack import Repacked
from wasmetal.models.files.source import Source
from wasmetal.models.packed import Packed

T = TypeVar("T")
D = TypeVar("D")


class InFile(Protocol):
    """A tensor's bytes in a file, whatever their type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major."""

    @property
    def nbytes(self) -> int:
        """How many there are."""

    @property
    def offset(self) -> int:
        """Where they begin."""

    @property
    def source(self) -> Source:
        """The file."""


@dataclass(frozen=True, slots=True)
class FileTensor:
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
        return tensor_bytes(self.repacked or self.dtype, self.shape)

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


class FileMetadata:
    """The metadata of the file at ``path``."""

    def __init__(self, path: Path):
        self.path = path
        self.fields: dict[str, Any] = {}
        """The metadata: int, float, bool, str, list[str] (it may be Packed) or a NumPy array by key."""

    def get(self, key: str, kind: type[T], default: D) -> T | D:
        """The metadata value of ``key``, or ``default`` if there is none. Raises ModelError if it is not a ``kind``."""
        if key not in self.fields:
            return default
        value = self.fields[key]
        if kind is list and isinstance(value, Packed):
            value = list(value)
        if type(value) is not kind:
            raise self.error(f"{key} should be of type {kind.__name__}, not {type(value).__name__}")
        return value

    def require(self, key: str, kind: type[T]) -> T:
        """The metadata value of ``key``. Raises ModelError if it is missing or not a ``kind``."""
        value = self.get(key, kind, None)
        if value is None:
            raise self.error(f"the metadata has no {key}")
        return value

    def error(self, what: str) -> ModelError:
        """A ModelError that names the file, to be raised. What it quotes of the file is made printable."""
        return ModelError(printable(f"{self.path.name}: {what}"))


class ModelFile(FileMetadata):
    """A model's files, open for reading, their headers checked."""

    sources: Sequence[Source]
    """The files' bytes, in the order of the parts."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.tensors: dict[str, FileTensor] = {}
        """The tensors by name, in the files' order."""
        self._headers = hashlib.sha256()
        """Of everything but the tensors that identifies the model."""
        self._originals: tuple[InFile, ...] = ()
        """The tensors as they lie in the files, if they were replaced."""

    def digest(self) -> bytes:
        """32 bytes that identify the model: a SHA-256 of its headers and of the beginning of every tensor."""
        sha256 = self._headers.copy()
        for tensor in self._originals or self._in_files():
            sha256.update(tensor.source.read(tensor.offset, min(tensor.nbytes, 4096)).data)
        return sha256.digest()

    def derive(self, tensors: dict[str, FileTensor], how: str) -> None:
        """Use tensors that are computed from the file's; ``how`` they are is part of the model's identity."""
        self._originals = tuple(self._in_files())
        self._headers.update(how.encode())
        self.tensors = tensors

    def _in_files(self) -> Iterable[InFile]:
        """The tensors as they lie in the files."""
        return self.tensors.values()
