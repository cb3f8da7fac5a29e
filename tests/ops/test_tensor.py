"""Tensors: what they cover, and what they refuse."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import random_weight
from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import WEIGHTS, DType
from wasmetal.ops import Tensor


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_row_bytes_are_those_of_the_format(dtype):
    raw, weights = random_weight(np.random.default_rng(1), dtype, 3, 768)
    assert dtype.row_bytes(768) == raw.shape[1]
    assert weights.shape == (3, 768)


@pytest.mark.parametrize("dtype", [DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q6_K])
def test_blocks_are_whole(cpu, dtype):
    with pytest.raises(OpError, match="not a whole number"):
        Tensor(cpu.allocate(4096), 0, dtype, (2, 48))


@given(
    offset=st.integers(-16, 300),
    shape=st.lists(st.integers(-1, 9), min_size=0, max_size=5),
    extra=st.integers(-3, 4),
    dtype=st.sampled_from([DType.F32, DType.F16, DType.I32]),
)
def test_a_tensor_lies_in_its_buffer_or_is_refused(cpu, offset, shape, extra, dtype):
    buffer, shape = cpu.allocate(512), tuple(shape)
    inner = math.prod(shape[1:])
    stride = max(0, inner + extra)
    size = dtype.block[1]
    end = offset + (((shape[0] - 1) * (stride or inner) + inner) * size if len(shape) > 1 else math.prod(shape) * size)
    fine = (
        1 <= len(shape) <= 4
        and min(shape) >= 1
        and (stride >= inner or stride == 0)
        and offset >= 0
        and offset % 16 == 0
        and end <= 512
    )
    if fine:
        assert (
            Tensor(buffer, offset, dtype, shape, stride).offset + Tensor(buffer, offset, dtype, shape, stride).nbytes
            == end
        )
    else:
        with pytest.raises(OpError):
            Tensor(buffer, offset, dtype, shape, stride)


def test_slices_cover_the_right_bytes(cpu):
    buffer = cpu.allocate(4096)
    numbers = buffer.view().view(np.float32)
    numbers[:] = np.arange(1024)
    x = Tensor(buffer, 64, DType.F32, (6, 12))
    want = numbers[16 : 16 + 72].reshape(6, 12)

    def values(tensor):
        shape, strides = tensor.shape, (tensor.row_stride * 4, 4)
        return np.ndarray(shape, np.float32, buffer.view(), tensor.offset, strides)

    assert (values(x.rows(1, 4)) == want[1:4]).all()
    assert (values(x.columns(4, 9)) == want[:, 4:9]).all()
    assert (values(x.columns(4, 12).rows(2, 3)) == want[2:3, 4:]).all()
    assert (values(x.reshape(12, 6)) == want.reshape(12, 6)).all()
    assert x.columns(0, 12).packed
    assert not x.columns(0, 11).packed
    assert x.columns(0, 11).rows(5, 6).packed  # A single row has no gaps.
    assert x.size == 72


def test_refused_slices(cpu):
    x = Tensor(cpu.allocate(4096), 0, DType.F32, (6, 12))
    for refused in (
        lambda: x.rows(0, 7),
        lambda: x.rows(3, 3),
        lambda: x.rows(-1, 2),
        lambda: x.columns(0, 13),
        lambda: x.columns(2, 4),  # Eight bytes in: not aligned.
        lambda: x.reshape(2, 3, 12).columns(0, 4),
        lambda: x.reshape(5, 12),
        lambda: x.columns(0, 4).reshape(24),
        lambda: Tensor(x.buffer, 0, DType.F32, (4, 8), 7),
    ):
        with pytest.raises(OpError):
            refused()


def test_overlap_is_told_by_address(cpu):
    buffer, other = cpu.allocate(4096), cpu.allocate(4096)
    x = Tensor(buffer, 0, DType.F32, (4, 4))
    assert x.overlaps(Tensor(buffer, 48, DType.I32, (1,)))
    assert not x.overlaps(Tensor(buffer, 64, DType.I32, (1,)))
    assert not x.overlaps(Tensor(other, 0, DType.F32, (4, 4)))
