"""Quantizing the float weights of a file while they are loaded, some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize
from numpy.typing import NDArray

from wasmetal.errors import ModelError
from wasmetal.kernels.dtypes import DType, tensor_bytes
from wasmetal.models.files.download import Progress
from wasmetal.models.files.model_file import FileTensor, ModelFile
from wasmetal.models.files.q4_k import quantize_q4_k
from wasmetal.models.files.source import Source

Rows = NDArray[np.float32]
Blocks = NDArray[np.uint8]

TYPES = {"q8_0": DType.Q8_0, "q4_0": DType.Q4_0, "q4_k": DType.Q4_K}
"""The types that weights can be quantized to, by the names that callers use."""
_FLOATS = (DType.F32, DType.F16, DType.BF16)
_FINER = ("token_embd.weight", "output.weight")
"""What decides about tokens directly: Q8_0 in place of a type of four bits, as llama.cpp keeps them at six or eight."""
_KEPT = (".ffn_gate_inp.weight", ".bias")
"""Which experts are asked, of a mixture: small, and sensitive; and the vectors that its experts add. llama.cpp keeps
them, too."""
_ELEMENTS = 1 << 20
"""Weights that are float32 at a time."""


def quantize(file: ModelFile, name: str, progress: Progress | None = None) -> None:
    """Have a file's matrices of floats quantized when they are read; ``name`` is one of TYPES.

    Vectors stay, matrices whose rows are no whole number of blocks, routers, and what is quantized already. Those of
    four bits keep the embedding and the output in Q8_0. ``progress`` is told of the bytes of the file that have been
    quantized, and of all that will be. Raises ModelError if there is no such type, or nothing that it fits.
    """
    if name not in TYPES:
        raise ModelError(f"weights cannot be quantized to {name!r}; supported: {', '.join(TYPES)}")
    plan = {
        tensor.name: target for tensor in file.tensors.values() if (target := _target(tensor, TYPES[name])) is not None
    }
    if TYPES[name] not in plan.values():
        kinds = ", ".join(sorted({tensor.dtype.name for tensor in file.tensors.values()}))
        raise file.error(
            f"nothing can be quantized to {name}: of matrices, F32, F16 and BF16 can, with rows of a multiple of "
            f"{TYPES[name].block[0]} weights; the file has {kinds}"
        )
    total, done = sum(file.tensors[each].nbytes for each in plan), 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done = min(done + nbytes, total)
        if progress:
            progress(done, total)

    tensors = dict(file.tensors)
    for each, target in plan.items():
        source = cast(Source, _Quantized(tensors[each], target, advance))
        tensors[each] = replace(tensors[each], dtype=target, offset=0, source=source)
    file.derive(tensors, f"quantized to {name}")


def _target(tensor: FileTensor, wanted: DType) -> DType | None:
    """What a tensor becomes, or None if it stays."""
    if tensor.dtype not in _FLOATS or tensor.repacked or len(tensor.shape) < 2 or tensor.name.endswith(_KEPT):
        return None
    target = DType.Q8_0 if tensor.name in _FINER else wanted
    return target if tensor.shape[-1] % target.block[0] == 0 else None


class _Quantized:
    """In place of a file: a matrix of one, quantized."""

    def __init__(self, tensor: FileTensor, target: DType, advance: Callable[[int], None]) -> None:
        self.size = tensor_bytes(target, tensor.shape)
        self._tensor = tensor
        self._target = target
        self._advance = advance

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes of the quantized matrix: whole rows of it, for which as much of the file is read as it takes."""
        columns = self._tensor.shape[-1]
        row = self._target.row_bytes(columns)
        first, last = offset // row, -(-(offset + nbytes) // row)
        out = np.empty((last - first, row), np.uint8)
        most = max(1, _ELEMENTS // columns)

        def convert(begin: int) -> None:
            end = min(begin + most, last)
            out[begin - first : end - first] = quantized(self._rows(begin, end), self._target)

        with ThreadPoolExecutor(_threads()) as pool:
            for begin, _ in zip(range(first, last, most), pool.map(convert, range(first, last, most)), strict=True):
                self._advance((min(begin + most, last) - begin) * self._tensor.dtype.row_bytes(columns))
        return out.reshape(-1)[offset - first * row :][:nbytes]

    def _rows(self, begin: int, end: int) -> Rows:
        tensor, columns = self._tensor, self._tensor.shape[-1]
        part = replace(
            tensor, shape=(end - begin, columns), offset=tensor.offset + begin * tensor.dtype.row_bytes(columns)
        )
        return part.dequantize()


def quantized(rows: Rows, target: DType) -> Blocks:
    """Rows of float32 as rows of blocks, uint8 [rows, bytes of a row]."""
    if target is DType.Q4_K:
        return quantize_q4_k(rows)
    blocks: Blocks = gguf_quantize(rows, GGMLQuantizationType(target.value))
    return blocks


def _threads() -> int:
    """NumPy releases Python's lock, so several threads quantize at the same time."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
