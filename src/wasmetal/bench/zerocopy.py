"""Shared against copied: the device scales an array in the host's pages, or a copy of it that is copied back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from wasmetal import ops
from wasmetal.bench.timing import median_seconds
from wasmetal.device.base import Buffer, CommandList, Device, MemoryKind
from wasmetal.errors import MemoryRefusedError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.region import Region
from wasmetal.ops import DType, Recorder, Tensor

SIZES = tuple(4096 * 4**i for i in range(10))
"""4 KiB to 1 GiB."""
REPEATS = 50


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
    return Row(nbytes, shared_ms, copied_ms, wrap_ms, bytes_copied_shared, bytes_copied_copied)


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
