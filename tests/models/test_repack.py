"""Weights that are repacked while they are loaded: the same floats, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from gguf.quants import dequantize

from tests.models.tiny import write_tiny_llama
from tests.ops.tensors import SCALES, random_blocks
from wasmetal.errors import ModelError, OpError
from wasmetal.kernels.dtypes import WEIGHTS
from wasmetal.kernels.reference.blocks import EXPAND
from wasmetal.models.files.gguf import GGUFFile
from wasmetal.models.files.repack import REPACKED, Repacked

each = pytest.mark.parametrize("repacked", REPACKED.values(), ids=lambda repacked: repacked.type.name)


@each
def test_the_same_weights_bit_for_bit(repacked: Repacked) -> None:
    """Random blocks, with every finite float16 as the scale, and as the offset."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[np.isfinite(halves.view(np.float16))]
    rng = np.random.default_rng(0)
    blocks = random_blocks(rng, repacked.type, len(halves), repacked.block[0])
    for at in SCALES.get(repacked.type.name, (0,)):
        blocks[:, at : at + 2] = rng.permutation(halves)[:, None].view(np.uint8)
    data = repacked(blocks.reshape(-1))
    assert repacked.dtype in WEIGHTS
    got = EXPAND[repacked.dtype](data.reshape(len(halves), repacked.dtype.row_bytes(repacked.block[0])))
    want = dequantize(blocks, repacked.type)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@each
def test_rows_are_whole_blocks(repacked: Repacked) -> None:
    per_block, nbytes = repacked.block
    assert repacked.row_bytes(3 * per_block) == 3 * nbytes
    with pytest.raises(OpError, match=f"not a whole number of {repacked.type.name} blocks of {per_block}"):
        repacked.row_bytes(3 * per_block - 16)


def test_no_file_has_the_type_that_is_not_of_ggml(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", qtype="Q8_0")
    data = path.read_bytes()
    name = b"blk.0.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # the number of dimensions and two of them, then the type
    path.write_bytes(data[:at] + (256).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(ModelError, match=r"attn_q\.weight' is of type number 256; supported: F32, F16, Q4_0"):
        GGUFFile(path)
