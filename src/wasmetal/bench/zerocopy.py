"""Shared against copied: the device scales an array in the host's pages, or a copy of it that is copied back.

And how fast it reads those pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

from wasmetal import ops
from wasmetal.bench.timing import median_seconds
from wasmetal.device.base import Buffer, CommandList, Device, MemoryKind
from wasmetal.errors import MemoryRefusedError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.region import Region
from wasmetal.ops import DType, Recorder, Tensor, linear

SIZES = tuple(4096 * 4**i for i in range(10))
"""4 KiB to 1 GiB."""
REPEATS = 50
_COLUMNS, _READS = 1024, 10
"""Of the matrix that is read: 4 KiB for each row. How often it is read."""


@dataclass(frozen=True, slots=True)
class Row:
    """One size. Times are medians in ms."""

    nbytes: int
    shared_ms: float
    """The device works on the pages in place."""
    copied_ms: float
    """The array is copied to the device's memory, scaled there and copied back."""
    wrap_ms: float
    """Wrapping the pages, once per buffer."""
    read_gbs: float
    """GB/s at which the device reads the pages in place, on its own clock."""
    bytes_copied_shared: int
    """Bytes that the device copied in one run."""
    bytes_copied_copied: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A size that was not measured."""

    nbytes: int
    reason: str


def measure(device: Device, sizes: Sequence[int] = SIZES) -> Iterator[Row | Skipped]:
    """Yield a result for each size as soon as it is measured."""
    for nbytes in sizes:
        # The array, its copy on the device, and as much again for a driver that stages what it copies.
        if 3 * nbytes > device.info.memory_bytes:
            yield Skipped(nbytes, f"needs {3 * nbytes} bytes; the device has {device.info.memory_bytes}")
            continue
        try:
            yield _row(device, nbytes)
        except (MemoryRefusedError, OutOfDeviceMemoryError, WrapRefusedError) as error:
            yield Skipped(nbytes, str(error))


def _row(device: Device, nbytes: int) -> Row:
    with ExitStack() as stack:
        page = device.info.page_alignment
        region = Region(-(-nbytes // page) * page, -(-nbytes // page) * page)
        stack.callback(region.close)
        data = region.view()[:nbytes]
        data[:] = 0  # pages are resident before the clock starts
        aperture = region.aperture(0, region.size)
        stack.callback(aperture.close)

        wrap_ms = 1e3 * median_seconds(lambda: device.wrap(aperture).close(), REPEATS, budget=0.2)
        shared = device.wrap(aperture)
        stack.callback(shared.close)
        in_place = stack.enter_context(scaling(device, shared, nbytes))
        before = device.counters.bytes_copied
        device.submit([in_place]).wait()
        bytes_copied_shared = device.counters.bytes_copied - before
        shared_ms = 1e3 * median_seconds(lambda: device.submit([in_place]).wait(), REPEATS)
        read_gbs = 1e-9 * nbytes / _seconds_to_read(device, shared, nbytes)

        copy = device.allocate(nbytes, MemoryKind.DEVICE)
        stack.callback(copy.close)
        on_the_copy = stack.enter_context(scaling(device, copy, nbytes))

        def there_and_back() -> None:
            device.write(copy, 0, data)
            device.submit([on_the_copy]).wait()
            device.read(copy, 0, data)

        before = device.counters.bytes_copied
        there_and_back()
        bytes_copied_copied = device.counters.bytes_copied - before
        copied_ms = 1e3 * median_seconds(there_and_back, REPEATS)
    return Row(nbytes, shared_ms, copied_ms, wrap_ms, read_gbs, bytes_copied_shared, bytes_copied_copied)


def _seconds_to_read(device: Device, buffer: Buffer, nbytes: int) -> float:
    """Device time of a GEMV whose weights, float32, are the buffer's bytes: it reads each once, and writes little."""
    rows = nbytes // (4 * _COLUMNS)
    with ExitStack() as stack:
        vectors = device.allocate(4 * (_COLUMNS + rows), MemoryKind.DEVICE)
        stack.callback(vectors.close)
        commands = device.record()
        stack.callback(commands.close)
        recorder = Recorder(device.info, commands)
        x = Tensor(vectors, 0, DType.F32, (1, _COLUMNS))
        most = recorder.max_tensor_bytes // (4 * _COLUMNS)
        for first in range(0, rows, most):
            some = min(most, rows - first)
            matrix = Tensor(buffer, 4 * _COLUMNS * first, DType.F32, (some, _COLUMNS))
            linear(recorder, x, matrix, Tensor(vectors, 4 * (_COLUMNS + first), DType.F32, (1, some)))
        commands.finish()
        submissions = [device.submit([commands])]
        for _ in range(_READS):
            submissions[-1].wait()
            submissions.append(device.submit([commands]))
        submissions[-1].wait()
    return median(submission.seconds for submission in submissions[1:])  # the first warms up


@contextmanager
def scaling(device: Device, buffer: Buffer, nbytes: int) -> Iterator[CommandList]:
    """A recorded list that multiplies every float32 in the buffer by one: reads and writes each byte once."""
    commands = device.record()
    recorder = Recorder(device.info, commands)
    chunk = recorder.max_tensor_bytes // 4096 * 4096
    for offset in range(0, nbytes, chunk):
        array = Tensor(buffer, offset, DType.F32, (min(chunk, nbytes - offset) // 4,))
        ops.scale(recorder, array, 1.0, array)
    commands.finish()
    yield commands
    commands.close()
