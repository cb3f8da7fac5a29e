"""GGUF, the model file format of llama.cpp, read from untrusted files.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.

A model may be split into several files, as ``llama-gguf-split`` does it: each has a header and tensors of its own, and
the first has the model's metadata.

The ``gguf`` package supplies enumerations and the reference dequantization. Its reader is not used: it trusts the
header's counts and lengths. Here each one is checked against the file's size before anything is allocated from it, so
a hostile file costs at most some 250 MiB of memory, four times MAX_HEADER, however many files it names.
"""

from __future__ import annotations

import re
from pathlib import Path

from gguf import GGMLQuantizationType

from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import BY_NUMBER, DType, tensor_bytes
from wasmetal.models.files.gguf_header import MAX_KEY, Bounds, Header, quote
from wasmetal.models.files.model_file import FileMetadata, FileTensor, ModelFile
from wasmetal.models.files.repack import REPACKED, Repacked
from wasmetal.models.files.source import Source

MAX_PARTS = 256
"""Files that a model may be split into; each stays open, and systems allow a process about 1000 open files."""
MAX_DIMENSIONS = 4

_TYPES = {number: dtype for number, dtype in BY_NUMBER.items() if dtype is not DType.Q8_16}
"""The types of a file that are read as they are, by number."""


class GGUFFile(ModelFile):
    """A GGUF file, or all parts of a split one, open for reading, headers checked.

    ``path`` is that of the file, or of any of the parts. Raises ModelError if a file is malformed, or a part missing.
    """

    def __init__(self, path: str | Path):
        super().__init__(Path(path))
        bounds = Bounds()
        opened = _Part(self.path, bounds)
        names = _part_names(self.path.name, opened)
        parts = [
            opened if name == self.path.name else _Part(self.path.with_name(name), bounds, (number, len(names)))
            for number, name in enumerate(names)
        ]
        self.fields = parts[0].fields
        self.sources = [part.source for part in parts]
        for part in parts:
            for name in part.tensors.keys() & self.tensors.keys():
                raise part.error(f"tensor {quote(name)} is in another part, too")
            self.tensors |= part.tensors
            self._headers.update(part.header)
        expected = self.get("split.tensors.count", int, len(self.tensors))
        if expected != len(self.tensors):
            raise self.error(f"{len(self.tensors)} tensors in all parts; {expected} are expected")


class _Part(FileMetadata):
    """One file: a whole model, or part of a split one; ``which``, if given, of how many, counted from 0."""

    def __init__(self, path: Path, bounds: Bounds, which: tuple[int, int] | None = None):
        super().__init__(path)
        self.source = Source(path)
        if not self.source.size:
            raise self.error("an empty file is not a GGUF file")
        header = Header(self.source, self.error, bounds)
        self.tensors: dict[str, FileTensor] = {}
        tensors, fields = header.start()
        for _ in range(fields):
            key = header.string("a key", MAX_KEY)
            if key in self.fields:
                raise self.error(f"the key {quote(key)} occurs twice")
            self.fields[key] = header.value(quote(key))
        self._read_tensors(header, tensors)
        header.finish()
        self.header = header.bytes[: header.position]
        if which is not None and which != (found := self.split()):
            raise self.error(
                f"this is part {found[0] + 1} of {found[1]}; part {which[0] + 1} of {which[1]} is expected"
            )

    def split(self) -> tuple[int, int]:
        """The part's number, counted from 0, and how many there are: (0, 1) if the file is not split."""
        number, count = self.get("split.no", int, 0), self.get("split.count", int, 0)
        if not (0 <= number < max(count, 1) <= MAX_PARTS):
            raise self.error(f"part {number + 1} of {count} of a split file; at most {MAX_PARTS} parts are supported")
        return number, max(count, 1)

    def _read_tensors(self, header: Header, count: int) -> None:
        described = []
        for _ in range(count):
            name = header.string("a tensor's name", MAX_KEY)
            dimensions = header.number("<I")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self.error(
                    f"tensor {quote(name)} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are supported"
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
                    f"tensor {quote(name)} ({nbytes} bytes at {offset}) is misaligned or ends past the end of the file"
                )
            if offset < end:
                raise self.error(f"tensor {quote(name)} overlaps another one")
            end = offset + nbytes
            if name in self.tensors:
                raise self.error(f"tensor {quote(name)} occurs twice")
            self.tensors[name] = FileTensor(name, dtype, shape, start + offset, self.source, repacked)

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
            raise self.error(f"tensor {quote(name)} is of type {_type_name(kind)}; supported: {supported}")
        try:
            if min(shape) < 1:
                raise OpError(f"shape {shape} is empty")
            return dtype, repacked, tensor_bytes(repacked or dtype, shape)
        except OpError as e:
            raise self.error(f"tensor {quote(name)}: {e}") from e


def part_files(name: str) -> list[str]:
    """The names of the files of a model that has a file of this name: ``name`` alone, unless it is that of a part."""
    found = re.fullmatch(r"(.+-)\d{5}(-of-(\d{5})\.gguf)", name, re.DOTALL)
    count = int(found[3]) if found else 1
    if found is None or not 1 < count <= MAX_PARTS:
        return [name]
    return [f"{found[1]}{number + 1:05}{found[2]}" for number in range(count)]


def _part_names(name: str, part: _Part) -> list[str]:
    """The names of all parts of a model, one of which is ``name``. Raises ModelError if it does not say which part."""
    number, count = part.split()
    if count == 1:
        return [name]
    if not name.endswith(ending := f"-{number + 1:05}-of-{count:05}.gguf"):
        raise part.error(f"this is part {number + 1} of {count} of a split file: its name should end in {ending}")
    return part_files(name)


def _type_name(number: int) -> str:
    """A tensor type that ggml knows, by name."""
    try:
        name: str = GGMLQuantizationType(number).name
        return name
    except ValueError:
        return f"number {number}"
