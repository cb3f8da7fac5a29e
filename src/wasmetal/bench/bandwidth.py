"""Memory bandwidth: the floor under a model's decoding, which reads every weight once for each token."""

from __future__ import annotations

from wasmetal.bench.timing import median_seconds
from wasmetal.bench.zerocopy import scaling
from wasmetal.device.base import Device, MemoryKind

NBYTES = 256 << 20
"""More than any cache holds."""


def measure(device: Device) -> float:
    """Bytes per second that the device moves between its memory and itself, reads and writes counted."""
    nbytes = min(NBYTES, device.info.memory_bytes // 4)
    buffer = device.allocate(nbytes, MemoryKind.DEVICE)
    try:
        with scaling(device, buffer, nbytes) as commands:
            return 2 * nbytes / median_seconds(lambda: device.submit([commands]).wait(), repeats=20)
    finally:
        buffer.close()
