"""Kernels that begin before the one before them has ended: which may, and that what they compute is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import HAS_CUDA
from wasmetal.device import MemoryKind, open_device
from wasmetal.device.backend import Dispatch, Range
from wasmetal.device.cuda.recording import CudaDispatch, begins_early
from wasmetal.kernels.catalog import CATALOG
from wasmetal.ops import DType, Recorder, Tensor, copy, linear

BYTES = 64
WEIGHTS = 0, BYTES
"""Of the kernel that reads them ahead."""


@dataclass(eq=False)
class Memory:
    address: int | None = None


def dispatch(kernel: str, memory: Memory, *places: tuple[int, int]) -> CudaDispatch:
    ranges = tuple(Range(memory, first, last - first) for first, last in places)
    return cast(CudaDispatch, Dispatch[Any, Any](CATALOG[kernel], None, ranges, b"", (1, 1, 1)))


def copied_to(memory: Memory, first: int, last: int) -> CudaDispatch:
    return dispatch("copy", memory, (3 * BYTES, 4 * BYTES), (first, last))


@given(first=st.integers(0, 3 * BYTES), length=st.integers(1, BYTES))
def test_what_the_kernel_before_writes(first: int, length: int) -> None:
    memory = Memory()
    product = dispatch("gemv_f16", memory, WEIGHTS, (BYTES, 2 * BYTES), (2 * BYTES, 3 * BYTES))
    overlap = first < WEIGHTS[1]
    assert begins_early(("weight",), product, copied_to(memory, first, first + length)) is not overlap


def test_what_is_read_after_waiting_may_have_been_written() -> None:
    memory = Memory()
    product = dispatch("gemv_f16", memory, WEIGHTS, (BYTES, 2 * BYTES), (2 * BYTES, 3 * BYTES))
    everything = copied_to(memory, 0, 3 * BYTES)
    assert begins_early((), product, everything)
    assert not begins_early(("weight",), product, everything)


def test_the_same_pages_in_another_allocation() -> None:
    product = dispatch("gemv_f16", Memory(4096), WEIGHTS, (BYTES, 2 * BYTES), (2 * BYTES, 3 * BYTES))
    assert not begins_early(("weight",), product, copied_to(Memory(4096), *WEIGHTS))
    assert begins_early(("weight",), product, copied_to(Memory(8192), *WEIGHTS))


def test_kernels_that_do_not_wait_and_the_first_of_a_list() -> None:
    memory = Memory()
    product = dispatch("gemv_f16", memory, WEIGHTS, (BYTES, 2 * BYTES), (2 * BYTES, 3 * BYTES))
    assert not begins_early(None, product, copied_to(memory, 3 * BYTES, 4 * BYTES))
    assert not begins_early((), product, None)


def test_buffers_that_are_read_ahead_exist() -> None:
    for kernel in CATALOG.values():
        assert {*(kernel.ahead or ())} <= {buffer.name for buffer in kernel.buffers}


@pytest.mark.skipif(not HAS_CUDA, reason="no GPU of NVIDIA's")
def test_weights_that_the_kernel_before_has_written() -> None:
    """Matrices are copied to where a product reads its weights, each just before that."""
    n, k, count = 4096, 2048, 8
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((count, n, k), np.float32).astype(np.float16)
    x = rng.standard_normal((1, k), np.float32)
    with open_device("cuda", "standard") as device:

        def tensor(dtype: DType, *shape: int, values: np.ndarray | None = None) -> Tensor:
            size = 2 if dtype is DType.F16 else 4
            buffer = device.allocate(
                size * int(np.prod(shape)), MemoryKind.DEVICE if values is not None else MemoryKind.SHARED
            )
            if values is not None:
                device.write(buffer, 0, values.reshape(-1).view(np.uint8))
            return Tensor(buffer, 0, dtype, shape)

        of_all = tensor(DType.F16, count * n, k, values=matrices)
        row, weight = tensor(DType.F32, 1, k, values=x), tensor(DType.F16, n, k, values=0 * matrices[0])
        out = tensor(DType.F32, count, n)
        commands = device.record()
        rec = Recorder(device.info, commands)
        for i in range(count):
            copy(rec, of_all.rows(i * n, (i + 1) * n), weight)
            linear(rec, row, weight, out.rows(i, i + 1))
        commands.finish()
        for _ in range(20):
            out.buffer.view()[:] = 0
            device.submit([commands]).wait(10)
            computed = out.buffer.view().view(np.float32).reshape(count, n)
            expected = matrices.astype(np.float32) @ x[0]
            assert np.abs(computed - expected).max() < 1e-2 * np.abs(expected).max()
        commands.close()
