"""Memory bandwidth, which bounds the speed of decoding: every token reads every weight once."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from wasmetal.device.base import CommandList, Device, MemoryKind, Submission
from wasmetal.ops import DType, Recorder, Tensor, linear

NBYTES = 512 << 20
"""Bytes of the weights: more than any cache holds."""
COLUMNS = 4096
REPEATS = 10
WARM = 0.3
"""Seconds of work before what is measured: a GPU raises its clocks only when it is busy, an H200 within 0.15 s."""


def measure(device: Device) -> float:
    """Bytes per second at which the device reads its own memory: a GEMV with random float32 weights.

    Measured on the device's clock, which leaves out what a submission costs the host.
    """
    rows = min(NBYTES, device.info.memory_bytes // 8) // (4 * COLUMNS)
    some = np.random.default_rng(0).standard_normal((1, COLUMNS), np.float32).view(np.uint8).reshape(-1)
    weights = device.allocate(rows * some.size, MemoryKind.DEVICE)
    vectors = device.allocate((COLUMNS + rows) * 4, MemoryKind.DEVICE)
    commands = device.record()
    try:
        for row in range(rows):
            device.load(weights, row * some.size, some)
        matrix = Tensor(weights, 0, DType.F32, (rows, COLUMNS))
        x, out = Tensor(vectors, 0, DType.F32, (1, COLUMNS)), Tensor(vectors, COLUMNS * 4, DType.F32, (1, rows))
        device.load(vectors, 0, some)
        linear(Recorder(device.info, commands), x, matrix, out)
        commands.finish()
        begin = time.perf_counter()
        while time.perf_counter() - begin < WARM:
            _run(device, commands)
        return weights.nbytes / median(_run(device, commands).seconds for _ in range(REPEATS))
    finally:
        commands.close()
        vectors.close()
        weights.close()


def _run(device: Device, commands: CommandList) -> Submission:
    submission = device.submit([commands])
    submission.wait()
    return submission
