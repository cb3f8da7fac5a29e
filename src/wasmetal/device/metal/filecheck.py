"""Whether the GPU sees what is in a wrapped file. Virtual ones are known to have read stale bytes there, in silence."""

from __future__ import annotations

import numpy as np

from wasmetal.device.base import Binding, Buffer, Device, MemoryKind
from wasmetal.errors import WrapRefusedError
from wasmetal.kernels.catalog import CATALOG, NO_BATCH, grid

SAMPLES = 64
"""Places, evenly spread over the file, the first and last pages among them."""
WORDS = 256
"""Words compared at each."""


def check_seen(device: Device, buffer: Buffer) -> None:
    """Have the GPU copy samples of a buffer, and compare them. Raises WrapRefusedError where one differs."""
    kernel = CATALOG["embed_f32"]  # of a table of one row
    nbytes = 4 * WORDS
    last = buffer.nbytes - nbytes
    alignment = device.info.offset_alignment
    places = [last * i // (SAMPLES - 1) // alignment * alignment for i in range(SAMPLES)]
    copies = device.allocate(SAMPLES * nbytes, MemoryKind.SHARED)
    ids = device.allocate(16, MemoryKind.SHARED)
    fields = dict.fromkeys((name for name, _ in kernel.params), 0)
    fields |= {"batch_offset": NO_BATCH, "rows": 1, "columns": WORDS, "table_rows": 1, "bound_rows": 1}
    params = kernel.pack(**fields)
    commands = device.record()
    for i, place in enumerate(places):
        index, copy = Binding(ids, 0, 16), Binding(copies, i * nbytes, nbytes)
        bindings = [Binding(buffer, place, nbytes), index, copy, index]
        commands.dispatch(kernel, bindings, params, grid(1))
    commands.finish()
    device.submit([commands]).wait()
    seen, there = copies.view().reshape(SAMPLES, nbytes), buffer.view()
    wrong = [place for i, place in enumerate(places) if not np.array_equal(seen[i], there[place : place + nbytes])]
    for gone in (commands, copies, ids):
        gone.close()
    if wrong:
        raise WrapRefusedError(
            f"{device.info.name} does not see what a file has at byte {wrong[0]}; "
            "to have a model's file copied, set WASMETAL_COPY_WEIGHTS=1"
        )
