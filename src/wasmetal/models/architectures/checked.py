"""What a model file says of its network, checked as it is read. Every method raises ModelError."""

from __future__ import annotations

import math

from wasmetal.models.files.model_file import FileTensor, ModelFile
from wasmetal.ops import DType


class Metadata:
    """The metadata of a file whose keys begin with its architecture's name."""

    def __init__(self, file: ModelFile, architecture: str) -> None:
        self.file = file
        self._prefix = architecture

    def key(self, name: str) -> str:
        """The whole key."""
        return f"{self._prefix}.{name}"

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An integer from ``least`` to 2^31 - 1; required without a default."""
        key = self.key(name)
        value = self.file.require(key, int) if default is None else self.file.get(key, int, default)
        if not least <= value < 2**31:
            raise self.file.error(f"{key} is {value}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number > 0; required without a default."""
        key = self.key(name)
        value = self.file.require(key, float) if default is None else self.file.get(key, float, default)
        if not (math.isfinite(value) and value > 0):
            raise self.file.error(f"{key} is {value}")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        return self.file.get(self.key(name), str, default)


class Tensors:
    """The tensors of a file, each of which is taken once."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._left = dict(file.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int) -> FileTensor:
        """The tensor of that name, which must have that shape."""
        found = self._left.pop(name, None)
        if found is None:
            raise self._file.error(f"the tensor {name} is missing")
        if found.shape != shape or found.dtype is DType.I32:
            raise self._file.error(f"{name} is {found.dtype.name} {found.shape}; {shape} is expected")
        return found

    def finish(self, architecture: str) -> None:
        """Refuse a file with tensors that were not taken."""
        if self._left:
            raise self._file.error(
                f"the tensor {next(iter(self._left))} is not supported in the architecture {architecture}"
            )
