"""How tensors become bindings, seen by a command list that only takes notes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.kernels.catalog import NO_BATCH
from wasmetal.ops import DType, Recorder, Tensor


class Notes:
    def __init__(self):
        self.dispatches = []

    def dispatch(self, kernel, bindings, params, groups):
        self.dispatches.append((kernel, bindings, kernel.unpack(params), groups))


def recorder(cpu, **limits):
    return Recorder(replace(cpu.info, **limits), Notes())


@given(alignment=st.sampled_from([4, 16, 64, 256]), starts=st.lists(st.integers(0, 100), min_size=2, max_size=2))
def test_bindings_are_aligned_and_cover_the_tensor(cpu, alignment, starts):
    rec = recorder(cpu, offset_alignment=alignment)
    x, out = (Tensor(cpu.allocate(4096), 16 * start, DType.F32, (5, 7)) for start in starts)
    ops.scale(rec, x, 2.0, out)
    ((_, bindings, p, groups),) = rec.commands.dispatches
    for binding, tensor, offset in zip(bindings, (x, out), (p.x_offset, p.out_offset), strict=True):
        assert binding.buffer is tensor.buffer
        assert binding.offset % alignment == 0
        assert binding.offset + 4 * offset == tensor.offset
        assert binding.offset + binding.nbytes == tensor.offset + 140
    assert groups == (1, 1, 1)


def test_bindings_are_whole_words(cpu):
    rec = recorder(cpu)
    a, b = (Tensor(cpu.allocate(52), 16, DType.F16, (1, 17)) for _ in range(2))
    out = Tensor(cpu.allocate(16), 0, DType.F32, (1, 1))
    ops.matmul(rec, a, b, out, transpose_b=True)
    assert [binding.nbytes for binding in rec.commands.dispatches[0][1]] == [36, 36, 4]
    short = Tensor(cpu.allocate(50), 16, DType.F16, (1, 17))
    with pytest.raises(OpError, match="within a word"):
        ops.matmul(rec, short, b, out, transpose_b=True)


def test_a_tensor_beyond_the_binding_limit(cpu):
    rec = recorder(cpu, max_binding_bytes=1024)
    x = Tensor(cpu.allocate(4096), 0, DType.F32, (512,))
    with pytest.raises(OpError, match=r"takes 2048 bytes; .* can bind 1024 at a time"):
        ops.scale(rec, x, 2.0, x)


def test_a_large_weight_is_split_into_bindable_rows(cpu):
    rec = recorder(cpu, max_binding_bytes=100_000, offset_alignment=256)
    x, out = Tensor(cpu.allocate(384), 0, DType.F32, (1, 96)), Tensor(cpu.allocate(4000), 0, DType.F32, (1, 1000))
    weight = Tensor(cpu.allocate(1000 * 96 * 4), 0, DType.F32, (1000, 96))
    ops.linear(rec, x, weight, out)
    assert [p.n for _, _, p, _ in rec.commands.dispatches] == [256, 256, 256, 232]
    for _, bindings, _, _ in rec.commands.dispatches:
        assert max(binding.nbytes for binding in bindings) <= 100_000


def test_without_batch_metadata_none_is_read(cpu):
    rec = recorder(cpu)
    x = Tensor(cpu.allocate(64), 0, DType.F32, (2, 8))
    ops.silu_mul(rec, x, x, x)
    assert rec.commands.dispatches[0][2].batch_offset == NO_BATCH


@pytest.mark.parametrize(("rows", "k", "name"), [(1, 64, "gemv"), (1, 12, "gemm"), (2, 64, "gemm")])
def test_linear_picks_its_kernel(cpu, rows, k, name):
    rec = recorder(cpu)
    x, weight, out = (Tensor(cpu.allocate(4096), 0, DType.F32, shape) for shape in ((rows, k), (3, k), (rows, 3)))
    ops.linear(rec, x, weight, out)
    assert rec.commands.dispatches[0][0].name == f"{name}_f32"


def test_numbers_beyond_32_bits(cpu):
    rec = recorder(cpu)
    x = Tensor(cpu.allocate(64), 0, DType.F32, (1, 8), row_stride=2**33)
    with pytest.raises(OpError, match="beyond 32 bits"):
        ops.rms_norm(
            rec, x, Tensor(cpu.allocate(64), 0, DType.F32, (8,)), Tensor(cpu.allocate(64), 0, DType.F32, (1, 8)), 1e-5
        )


def test_views_of_the_same_pages_are_known_to_overlap(cpu):
    buffer = cpu.allocate(4096)
    x, late = Tensor(buffer, 0, DType.F32, (4, 8)), Tensor(buffer, 64, DType.F32, (4, 8))
    rec = recorder(cpu)
    with pytest.raises(OpError, match="partly overlaps x"):
        ops.scale(rec, x, 2.0, late)
    ops.scale(rec, x, 2.0, Tensor(buffer, 128, DType.F32, (4, 8)))


@given(
    stride=st.integers(8, 24),
    starts=st.tuples(*[st.integers(0, 5)] * 2),
    widths=st.tuples(*[st.integers(1, 8)] * 2),
    rows=st.integers(1, 4),
)
def test_overlap_of_column_slices_is_exact(cpu, stride, starts, widths, rows):
    """Refused exactly where some element of one is an element of the other."""
    buffer = cpu.allocate(4096)
    numbers = np.arange(1024)
    slices, elements = [], []
    for start, width in zip(starts, widths, strict=True):
        slices.append(Tensor(buffer, 16 * start, DType.F32, (rows, width), stride))
        elements.append({int(numbers[4 * start + r * stride + c]) for r in range(rows) for c in range(width)})
    x, out = slices
    weight = Tensor(cpu.allocate(4096), 0, DType.F32, (widths[1], widths[0]))
    rec = recorder(cpu)
    if elements[0] & elements[1]:
        with pytest.raises(OpError, match="overlaps x"):
            ops.linear(rec, x, weight, out)
    else:
        ops.linear(rec, x, weight, out)


@pytest.mark.parametrize("factor", [1e10, -1e38, float("inf")])
def test_any_float32_is_a_parameter(cpu, factor):
    rec = recorder(cpu)
    x = Tensor(cpu.allocate(64), 0, DType.F32, (4,))
    ops.scale(rec, x, factor, x)
    assert rec.commands.dispatches[0][2].factor == np.float32(factor)
    with pytest.raises(OpError, match="beyond float32"):
        ops.scale(rec, x, 1e39, x)
