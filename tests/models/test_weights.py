"""Weights in the pages of their file: in as few tensors as lie there in one piece."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from wasmetal.device import Device
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.weights import Weights

NAMES = "abcd"


@pytest.fixture
def file(tmp_path: Path) -> GGUFFile:
    """Four tensors, in the order of their names; the second one's bytes do not fill the file's alignment."""
    writer, random = gguf.GGUFWriter(tmp_path / "file.gguf", "none"), np.random.default_rng(0)
    for name, rows, dtype in zip(NAMES, (4, 3, 4, 8), (np.float32, np.float32, np.float32, np.float16), strict=True):
        writer.add_tensor(name, random.standard_normal((rows, 12)).astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "file.gguf").chmod(0o644)
    return GGUFFile(tmp_path / "file.gguf")


@pytest.mark.parametrize(
    ("names", "parts"),
    [("a", 1), ("ab", 1), ("ba", 2), ("bc", 2), ("ac", 2), ("cd", 2), ("aa", 2), ("abab", 2), ("abcd", 3)],
)
def test_neighbours_are_one(cpu: Device, file: GGUFFile, names: str, parts: int) -> None:
    if not cpu.info.wraps_files:
        pytest.skip("no compiled kernels for this processor")
    buffers = BufferGroup(cpu)
    (weight,) = Weights(buffers, file).place([[file.tensors[name] for name in names]])
    assert len(weight.parts) == parts
    found = np.concatenate([part.numpy().astype(np.float32) for part in weight.parts])
    np.testing.assert_array_equal(found, np.concatenate([file.tensors[name].dequantize() for name in names]))
    assert buffers.counters.bytes_loaded == 0
    buffers.close()
