"""Whether the GPU sees what is in a wrapped file. Virtual ones are known to have read stale bytes there, in silence."""

from __future__ import annotations

import numpy as np

from wasmetal.device.base import Binding, Buffer, Device, MemoryKind
from wasmetal.errors import WrapRefusedError
from wasmetal.kernels.catalog import CATALOG, grid

SAMPLES = 64
"""Places, evenly spread over the file, the first and last pages among them."""
WORDS = 256
"""Words compared at each."""


def check_seen(device: Device, buffer: Buffer) -> None:
    """Have the GPU copy samples of a buffer, and compare them. Raises WrapRefusedError where one differs."""
    kernel = CATALOG["copy_row"]
    nbytes = 4 * WORDS
    last = buffer.nbytes - nbytes
    alignment = device.info.offset_alignment
    places = [last * i // (SAMPLES - 1) // alignment * alignment for i in range(SAMPLES)]
    copies = device.allocate(SAMPLES * nbytes, MemoryKind.SHARED)
    step = device.allocate(16, MemoryKind.SHARED)
    params = kernel.pack(x_offset=0, out_offset=0, step_offset=0, rows=1, columns=WORDS, x_stride=WORDS)
    commands = device.record()
    for i, place in enumerate(places):
        bindings = [Binding(buffer, place, nbytes), Binding(copies, i * nbytes, nbytes), Binding(step, 0, 16)]
        commands.dispatch(kernel, bindings, params, grid(-(-WORDS // kernel.threads[0])))
    commands.finish()
    device.submit([commands]).wait()
    seen, there = copies.view().reshape(SAMPLES, nbytes), buffer.view()
    wrong = [place for i, place in enumerate(places) if not np.array_equal(seen[i], there[place : place + nbytes])]
    for gone in (commands, copies, step):
        gone.close()
    if wrong:
        raise WrapRefusedError(
            f"{device.info.name} does not see what a file has at byte {wrong[0]}; "
            "to have a model's file copied, set WASMETAL_COPY_WEIGHTS=1"
        )
