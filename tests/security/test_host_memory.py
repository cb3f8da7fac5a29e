"""Host memory that a guest can make the CPU device allocate: scratch of kernels, and many small buffers."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.host.probe import PAGE, Probe, command, tensor
from wasmetal import Limits, ops
from wasmetal.device import Device
from wasmetal.device.cpu import memory
from wasmetal.host import abi
from wasmetal.memory.pages import page_size
from wasmetal.ops import DType, Recorder, Tensor

MIB = 1 << 20
SCRATCH = 8 * MIB
"""More than any kernel allocates at a time; less than the smallest large tensor below."""

Record = Callable[[Recorder], None]


def new(device: Device, *shape: int, dtype: DType = DType.F32, fill: float | None = None, gap: int = 0) -> Tensor:
    """A tensor in memory that is not counted. Unless it is filled, its pages are zeros that take no memory."""
    stride = int(np.prod(shape[1:])) + gap
    made = Tensor(device.allocate(dtype.row_bytes(stride) * shape[0]), 0, dtype, shape, stride if gap else 0)
    if fill is not None:
        made.numpy()[...] = fill
    return made


def paged(device: Device, rows: int, heads: int, dtype: DType, slots: int, *, every: int = 1) -> Record:
    """Attention of rows at the last positions of one sequence, whose pages are in no order; and their append."""
    q, out = new(device, rows, heads, 8), new(device, rows, heads * 8)
    pool, k = new(device, slots // 16, 16, heads, 8, dtype=dtype), new(device, rows, heads, 8)
    other = new(device, slots // 16, 16, heads, 8, dtype=dtype)
    batch, sequences = new(device, 1 + rows, 2, dtype=DType.I32), new(device, 1, 1 + slots // 16, dtype=DType.I32)
    batch.numpy()[0] = rows, 0
    batch.numpy()[1:, 0] = slots - 1 - np.arange(rows)[::-1] * every
    sequences.numpy()[0, 0] = slots
    sequences.numpy()[0, 1:] = np.arange(slots // 16)[::-1]

    def record(rec: Recorder) -> None:
        ops.kv_append(rec, k, k, pool, other, batch, sequences)
        ops.attention(rec, q, pool, other, batch, sequences, out, 1.0)

    return record


def batch_of(device: Device, rows: int) -> Tensor:
    made = new(device, 1 + rows, 2, dtype=DType.I32)
    made.numpy()[0] = rows, 0
    return made


def halves(device: Device, columns: int, rows: int = 2048) -> tuple[Tensor, Tensor]:
    """Two halves of a matrix's columns: no byte in common, though their ranges interleave."""
    both = new(device, rows, 2 * columns)
    return both.columns(0, columns), both.columns(columns, 2 * columns)


def kernels(device: Device) -> dict[str, Record]:
    """One or more kernels each, on tensors of 32 MiB and more, or with as many rows as they can have."""
    wide, tall = new(device, 1, 1 << 24), new(device, 1 << 23, 1)
    heads = wide.reshape(1, 1 << 24, 1)
    left, right = halves(device, 4096)
    vector, weights = new(device, 4096), new(device, 1024, 4096)
    small = new(device, 2048, 8)
    ids, found = new(device, 1 << 20, dtype=DType.I32), new(device, 1 << 20, 32)
    quantized, wider = new(device, 1, 1 << 24, dtype=DType.Q4_0), new(device, 2, 1 << 24)
    half, half_product = new(device, 64, 1 << 18, dtype=DType.F16), new(device, 2048, 4096, dtype=DType.F16)
    nan, index = new(device, 2, 1 << 23, fill=np.nan), new(device, 2, dtype=DType.I32)
    table, turned = new(device, 1 << 20, 4, 2), new(device, 1 << 20, 2, 8)
    wide_table, wide_turned = new(device, 2, 1 << 22, 2), new(device, 2, 1, 1 << 23)
    one, two = new(device, 1, 64), new(device, 2, 64)
    return {
        "silu_mul": lambda rec: ops.silu_mul(rec, wide, wide, wide),
        "silu_mul tall": lambda rec: ops.silu_mul(rec, tall, tall, tall),
        "gelu_mul": lambda rec: ops.gelu_mul(rec, wide, wide, wide),
        "gelu": lambda rec: ops.gelu(rec, wide, wide),
        "layer_norm tall": lambda rec: ops.layer_norm(rec, tall, new(device, 1), new(device, 1), tall, 0.0),
        "layer_norm halves": lambda rec: ops.layer_norm(rec, left, vector, vector, right, 0.0),
        "silu_mul halves": lambda rec: ops.silu_mul(rec, left, right, left),
        "add": lambda rec: ops.add(rec, wide, wide, wide),
        "add halves": lambda rec: ops.add(rec, left, vector, right),
        "scale halves": lambda rec: ops.scale(rec, left, 2.0, right),
        "rms_norm tall": lambda rec: ops.rms_norm(rec, tall, new(device, 1), tall, 0.0),
        "rms_norm wide": lambda rec: ops.rms_norm(rec, wide, new(device, 1 << 24), wide, 0.0),
        "rms_norm heads": lambda rec: ops.rms_norm(rec, heads, new(device, 1), heads, 0.0),
        "rms_norm halves": lambda rec: ops.rms_norm(rec, left, vector, right, 0.0),
        "softmax tall": lambda rec: ops.softmax(rec, tall, tall),
        "softmax halves": lambda rec: ops.softmax(rec, left, right),
        "argmax": lambda rec: ops.argmax(rec, nan, index),
        "argmax tall": lambda rec: ops.argmax(rec, tall, new(device, 1 << 23, dtype=DType.I32)),
        "argmax strided": lambda rec: ops.argmax(rec, right, new(device, 2048, dtype=DType.I32)),
        "rope": lambda rec: ops.rope(rec, turned, table, batch_of(device, 1 << 20), interleaved=True),
        "rope halves": lambda rec: ops.rope(rec, turned, table, batch_of(device, 1 << 20), interleaved=False),
        "rope wide": lambda rec: ops.rope(rec, wide_turned, wide_table, batch_of(device, 2), interleaved=False),
        "embed": lambda rec: ops.embed(rec, new(device, 8, 32, dtype=DType.Q8_0), ids, found),
        "embed wide": lambda rec: ops.embed(rec, quantized, index, wider),
        "gemv": lambda rec: ops.linear(rec, wide, quantized, new(device, 1, 1), accumulate=True),
        "gemv tall": lambda rec: ops.linear(
            rec, one, new(device, 1 << 20, 64), wide.columns(0, 1 << 20), accumulate=True
        ),
        "gemm": lambda rec: ops.linear(rec, wider, quantized, new(device, 2, 1)),
        "gemm tall": lambda rec: ops.linear(
            rec, two, new(device, 1 << 19, 64, dtype=DType.F16), new(device, 2, 1 << 19)
        ),
        "gemm halves": lambda rec: ops.linear(rec, left, weights, right.columns(0, 1024), accumulate=True),
        "gemm into halves": lambda rec: ops.linear(rec, left.columns(0, 8), new(device, 4096, 8), right),
        "matmul": lambda rec: ops.matmul(rec, half, half, new(device, 64, 64), transpose_b=True),
        "matmul to f16": lambda rec: ops.matmul(rec, small, new(device, 8, 4096), half_product),
        "matmul into halves": lambda rec: ops.matmul(rec, small, new(device, 8, 4096), right),
        "matmul of halves": lambda rec: ops.matmul(rec, left, new(device, 4096, 64), right.columns(0, 64)),
        "matmul of many": lambda rec: ops.matmul(
            rec, new(device, 1 << 17, 8, 8), new(device, 8, 8), new(device, 1 << 17, 8, 8)
        ),
        "attention, one row": paged(device, 1, 2, DType.F16, 1 << 20),
        "attention, many rows": paged(device, 512, 4, DType.F32, 1 << 13),
        "attention, many heads": paged(device, 2, 1 << 16, DType.F32, 32),
        "attention, many runs": paged(device, 100, 1, DType.F32, 1 << 13, every=2),
    }


@pytest.mark.slow
def test_scratch_of_kernels(cpu: Device) -> None:
    """While one runs, and what is kept after it has been recorded and has run."""
    peaks, kept = {}, {}
    for name, record in kernels(cpu).items():
        commands = cpu.record()
        tracemalloc.start()
        record(Recorder(cpu.info, commands))
        commands.finish()
        cpu.submit([commands]).wait()
        _, peaks[name] = tracemalloc.get_traced_memory()
        gc.collect()
        kept[name], _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        commands.close()
    assert {name: peak for name, peak in peaks.items() if peak > SCRATCH} == {}
    assert {name: size for name, size in kept.items() if size > MIB / 16} == {}


ATTACKS = """
import resource, sys
from tests.security.peak import MIB, growth_below
from tests.security.test_host_memory import attention_over_one_page, many_large_lists
from wasmetal.device import open_device

resource.setrlimit(resource.RLIMIT_AS, (14 << 30, 14 << 30))
with open_device("cpu") as device:
    attack = globals()[sys.argv[1]](device)
    with growth_below(64 * MIB):  # where coverage is measured, it takes some of that
        next(attack)
"""


def attention_over_one_page(device: Device) -> Iterator[None]:
    """A page table that maps 2^28 positions to the one page of a pool, in a memory of 1 MiB."""
    limits = Limits(memory_bytes=16 * PAGE, device_bytes=0, handles=4, commands=1)
    with Probe(device, pages=16, maximum=16, limits=limits) as probe:
        buffer, slots = probe.share(PAGE, 15 * PAGE), 1 << 16
        pool = tensor(buffer, (1, slots, 1, 4), dtype=1)
        sequences = tensor(buffer, (1, (1 << 12) + 1), 9 * PAGE, dtype=26)
        batch, q, out = (
            tensor(buffer, (2, 2), 8 * PAGE, dtype=26),
            tensor(buffer, (1, 1, 4), 8 * PAGE + 64),
            8 * PAGE + 128,
        )
        probe.bytes[PAGE:] = 0
        probe.put(9 * PAGE, np.array([1, 0, 2**31 - 1, 0], np.uint32))
        probe.put(10 * PAGE, np.array([2**31 - 1], np.uint32))
        probe.run(command(7, q, pool, pool, batch, sequences, tensor(buffer, (1, 4), out), attributes=(1.0,)))
        yield


def many_large_lists(device: Device) -> Iterator[None]:
    """A list of 200 commands, each on 16 MiB."""
    pages = 257
    with Probe(device, pages=pages, maximum=pages, limits=Limits(memory_bytes=pages * PAGE, device_bytes=0)) as probe:
        probe.bytes[:] = 0
        x = tensor(probe.share(PAGE, 256 * PAGE), (1, 1 << 22))
        probe.run(*[command(8, x, x, x)] * 200)
        yield


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's record of the process")
@pytest.mark.parametrize("attack", [attention_over_one_page, many_large_lists])
def test_memory_of_an_attack(attack: Callable[[Device], Iterator[None]]) -> None:
    """More than what the guest was granted: at most a few blocks."""
    ran = subprocess.run(
        [sys.executable, "-c", ATTACKS, attack.__name__], capture_output=True, text=True, timeout=150, check=False
    )
    assert ran.returncode == 0, ran.stderr


def mappings() -> int:
    with open("/proc/self/maps") as lines:
        return sum(1 for _ in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of the process's mappings")
def test_small_buffers_do_not_use_up_the_mappings(cpu: Device) -> None:
    """Every other one is closed, so that what is left is not one range that the kernel merges."""
    before = mappings()
    buffers = [cpu.allocate(1 + number % 5000) for number in range(20_000)]
    for buffer in buffers[::2]:
        buffer.close()
    assert mappings() < before + 100
    for buffer in buffers:
        buffer.close()


def test_a_buffer_is_charged_as_whole_pages(device: Device) -> None:
    limit = 4 * device.info.page_alignment
    with Probe(device, limits=Limits(device_bytes=limit)) as probe:
        held = [probe.allocate(1) for _ in range(4)]
        assert probe.buffer_create_device(1, 3, probe.OUT) == abi.Errno.NOMEM
        for buffer in held:
            assert probe.buffer_destroy(buffer) == abi.Errno.SUCCESS
        probe.allocate(limit)


@pytest.mark.parametrize("nbytes", [1, page_size(), 5 * page_size(), 1 << 20])
def test_memory_is_zero_when_it_is_handed_out_again(cpu: Device, nbytes: int) -> None:
    """Also if a view outlived the buffer and the bytes were written to after it was closed."""
    for _ in range(3):
        buffers = [cpu.allocate(nbytes) for _ in range(40)]
        assert not any(buffer.view().any() for buffer in buffers)
        views = [buffer.view() for buffer in buffers]
        for buffer in buffers:
            buffer.close()
        others = [cpu.allocate(nbytes) for _ in range(40)]
        for view in views:
            view[:] = 255
        assert not any(other.view().any() for other in others)


def test_memory_is_given_back() -> None:
    """When the last view is gone, whatever kind of view it is."""
    slab = memory._Slab(page_size())
    data = slab.take(100)
    part = data[10:20].data[2:].cast("B")
    del data
    gc.collect()
    assert not slab.unused
    part[0] = 7
    del part
    assert slab.unused
    assert not any(slab.take(page_size()).any() for _ in range(2 * len(slab.free)))
