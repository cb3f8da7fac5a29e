"""The experts of a folder of Hugging Face in GGUF's terms: one tensor for each kind of weight of a layer's experts.

Most mixtures have a matrix for each expert. gpt-oss has one for all, in which the rows of gate and up take turns: as
blocks of MXFP4 and their scales, or as floats, transposed, which is how transformers writes them once expanded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

from wasmetal.errors import ModelError
from wasmetal.kernels.dtypes import DType
from wasmetal.models.files.gguf_header import quote
from wasmetal.models.files.model_file import FileTensor
from wasmetal.models.files.safetensors import Integers
from wasmetal.models.files.source import Source
from wasmetal.models.hf_sources import EverySecond, Mxfp4, Stacked, Transposed

_JOINED = re.compile(r"model\.layers\.(\d{1,6})\.(mlp\.experts\.(?:gate_up|down)_proj)(_blocks|_scales|_bias|)")
_KINDS = {"mlp.experts.gate_up_proj": ("gate", "up"), "mlp.experts.down_proj": ("down",)}
"""GGUF's kinds whose rows take turns in a tensor."""
_BLOCK = 16
"""Bytes of a block's weights."""

Stored = FileTensor | Integers
K = TypeVar("K")
V = TypeVar("V", bound=Stored)


class Experts:
    """Collects the tensors of experts, in any order."""

    def __init__(self, error: Callable[[str], ModelError]) -> None:
        """``error`` makes a ModelError that names the folder."""
        self._error = error
        self._single: dict[str, dict[int, FileTensor]] = {}
        self._joined: dict[tuple[int, str], dict[str, Stored]] = {}

    def add(self, name: str, number: int, stored: FileTensor) -> None:
        """Add one expert's matrix, which GGUF has in the tensor ``name``. Raises ModelError if it was added before."""
        self._put(self._single.setdefault(name, {}), number, stored)

    def add_joined(self, stored: Stored) -> bool:
        """Add a tensor of all experts of gpt-oss, if it is one. Raises ModelError if it was added before."""
        found = _JOINED.fullmatch(stored.name)
        if found:
            self._put(self._joined.setdefault((int(found[1]), found[2]), {}), found[3], stored)
        return found is not None

    def tensors(self) -> Iterator[FileTensor]:
        """The tensors by GGUF's names. Raises ModelError if something is missing, or of another shape."""
        for name, experts in self._single.items():
            yield self._stacked(name, experts)
        for (layer, module), parts in self._joined.items():
            yield from self._apart(layer, module, parts)

    def _put(self, parts: dict[K, V], key: K, stored: V) -> None:
        if key in parts:
            raise self._error(f"the tensor {quote(stored.name)} occurs twice")
        parts[key] = stored

    def _stacked(self, name: str, experts: dict[int, FileTensor]) -> FileTensor:
        """One tensor of the same weights of all experts, in their order."""
        parts = [experts[number] for number in sorted(experts)]
        first = parts[0]
        alike = all((part.dtype, part.shape) == (first.dtype, first.shape) for part in parts)
        if not alike or sorted(experts) != list(range(len(parts))):
            raise self._error(f"the experts' {name} are not numbered from 0, or differ in shape or type")
        return FileTensor(name, first.dtype, (len(parts), *first.shape), 0, cast(Source, Stacked(parts)))

    def _apart(self, layer: int, module: str, parts: dict[str, Stored]) -> Iterator[FileTensor]:
        """The tensors that are one in the folder."""
        whole, kinds = f"model.layers.{layer}.{module}", _KINDS[module]
        forms = parts.keys() - {"_bias"}
        if forms not in ({""}, {"_blocks", "_scales"}):
            raise self._error(f"of {whole}, either it or its _blocks and _scales should be there, and nothing else")
        for which, kind in enumerate(kinds):
            name = f"blk.{layer}.ffn_{kind}_exps"
            if "" in parts:
                yield self._transposed(f"{name}.weight", parts[""], which, len(kinds))
            else:
                yield self._mxfp4(f"{name}.weight", parts["_blocks"], parts["_scales"], which, len(kinds))
            if "_bias" in parts:
                yield self._bias(f"{name}.bias", parts["_bias"], which, len(kinds))

    def _transposed(self, name: str, stored: Stored, which: int, step: int) -> FileTensor:
        tensor = self._floats(stored, 3, step)
        matrices, columns, rows = tensor.shape
        source = cast(Source, Transposed(tensor, which, step))
        return FileTensor(name, tensor.dtype, (matrices, rows // step, columns), 0, source)

    def _bias(self, name: str, stored: Stored, which: int, step: int) -> FileTensor:
        tensor = self._floats(stored, 2, step)
        shape = tensor.shape[0], tensor.shape[1] // step
        if step == 1:
            return FileTensor(name, tensor.dtype, shape, tensor.offset, tensor.source)
        return FileTensor(name, tensor.dtype, shape, 0, cast(Source, EverySecond(tensor, which)))

    def _floats(self, stored: Stored, dimensions: int, step: int) -> FileTensor:
        """A tensor of floats, the last of its dimensions a multiple of ``step``."""
        if isinstance(stored, Integers) or len(stored.shape) != dimensions or stored.shape[-1] % step:
            kind = stored.type if isinstance(stored, Integers) else stored.dtype.name
            raise self._error(
                f"{quote(stored.name)} is {kind} {stored.shape}; floats in {dimensions} dimensions are expected"
                + (", of which the last is even" if step > 1 else "")
            )
        return stored

    def _mxfp4(self, name: str, blocks: Stored, scales: Stored, which: int, step: int) -> FileTensor:
        for stored in (blocks, scales):
            if not isinstance(stored, Integers) or stored.type != "U8":
                kind = stored.type if isinstance(stored, Integers) else stored.dtype.name
                raise self._error(f"{quote(stored.name)} is of type {kind}; U8 is expected")
        if len(scales.shape) != 3 or blocks.shape != (*scales.shape, _BLOCK) or scales.shape[1] % step:
            raise self._error(
                f"{quote(blocks.name)} is {blocks.shape}, and its scales are {scales.shape}: (experts, rows, blocks of "
                f"a row, {_BLOCK}) and the same without {_BLOCK} are expected" + (", rows even" if step > 1 else "")
            )
        experts, rows, per_row = scales.shape
        shape = experts, rows // step, per_row * DType.MXFP4.block[0]
        return FileTensor(name, DType.MXFP4, shape, 0, cast(Source, Mxfp4(blocks, scales, which, step)))
