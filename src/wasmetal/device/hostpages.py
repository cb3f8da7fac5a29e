"""Host pages: new ones, checks before a driver imports them, and checks of a mapped file's pages afterwards.

Some drivers refuse bad pages on import; others accept them, and the process dies when a kernel touches them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wasmetal.device.base import Binding, Buffer, Bytes, Device, DeviceInfo, HostPages, MemoryKind
from wasmetal.device.trial import PATIENCE
from wasmetal.errors import MemoryRefusedError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.kernels.catalog import CATALOG, NO_BATCH, grid
from wasmetal.memory.pages import Pages, page_size

_MAPS = Path("/proc/self/maps")

_SAMPLES = 64
"""Places of a file that are compared, evenly spread, including its first and last bytes."""
_WORDS = 256
"""32-bit words compared at each place."""


def check_pages(info: DeviceInfo, pages: HostPages) -> bool:
    """Whether pages are writable (a mapped file's are not). Raises WrapRefusedError if they cannot be imported."""
    address, nbytes, alignment = pages.address, pages.nbytes, info.page_alignment
    if nbytes <= 0 or address % alignment or nbytes % alignment:
        raise WrapRefusedError(f"address and length must be multiples of {alignment}")
    writable = not info.wraps_files or pages.view().flags.writeable
    if problem := find_problem(address, nbytes, write=writable):
        raise WrapRefusedError(problem)
    return writable


def find_problem(address: int, nbytes: int, *, write: bool = True) -> str | None:
    """Why a range of pages cannot be read (and, with ``write``, written); None if it can.

    Returns None if the operating system has no list of mappings in /proc (macOS).
    """
    if not _MAPS.exists():
        return None
    at, end = address, address + nbytes
    with _MAPS.open() as maps:
        for line in maps:  # "start-end rwxp …", in ascending order
            mapping, permissions = line.split(maxsplit=2)[:2]
            start, stop = (int(bound, 16) for bound in mapping.split("-"))
            if stop <= at:
                continue
            if start > at:
                break
            if permissions[0] != "r":
                return f"the page at {at:#x} is not accessible"
            if write and permissions[1] != "w":
                return f"the page at {at:#x} is read-only"
            at = stop
            if at >= end:
                return None
    return f"the page at {at:#x} is not mapped"


def new_pages(nbytes: int) -> Bytes:
    """At least ``nbytes`` > 0 zero-filled bytes in whole pages, for a device to wrap. Raises OutOfDeviceMemoryError."""
    size = -(-nbytes // page_size()) * page_size()
    try:
        pages = Pages(size)
        pages.open(0, size)
    except MemoryRefusedError as error:
        raise OutOfDeviceMemoryError(f"no room for {nbytes} bytes ({error})") from error
    return pages.view(0, size)


def check_file(device: Device, buffer: Buffer) -> None:
    """Compare samples of a wrapped file, as the device sees them, with the file.

    Virtual GPUs are known to read stale bytes there without an error. Raises WrapRefusedError if a sample differs, and
    DeviceTimeoutError if the device does not finish.
    """
    kernel, alignment = CATALOG["embed_f32"], device.info.offset_alignment  # on a table of one row it copies the row
    nbytes = 4 * _WORDS
    last = buffer.nbytes - nbytes
    places = [last * i // (_SAMPLES - 1) // alignment * alignment for i in range(_SAMPLES)]
    copies, ids = device.allocate(_SAMPLES * nbytes, MemoryKind.SHARED), device.allocate(16, MemoryKind.SHARED)
    fields = dict.fromkeys((name for name, _ in kernel.params), 0)
    fields |= {"batch_offset": NO_BATCH, "rows": 1, "columns": _WORDS, "table_rows": 1, "bound_rows": 1}
    params, index = kernel.pack(**fields), Binding(ids, 0, 16)
    commands = device.record()
    for i, place in enumerate(places):
        bindings = [Binding(buffer, place, nbytes), index, Binding(copies, i * nbytes, nbytes), index]
        commands.dispatch(kernel, bindings, params, grid(1))
    commands.finish()
    device.submit([commands]).wait(PATIENCE)
    seen, there = copies.view().reshape(_SAMPLES, nbytes), buffer.view()
    wrong = [place for i, place in enumerate(places) if not np.array_equal(seen[i], there[place : place + nbytes])]
    for gone in (commands, copies, ids):
        gone.close()
    if wrong:
        raise WrapRefusedError(f"the device's view differs from the file at byte {wrong[0]}")
