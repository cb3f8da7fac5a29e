"""Checks of host pages before a driver imports them.

Some drivers refuse bad pages on import; others accept them, and the process dies when a kernel touches them.
"""

from __future__ import annotations

from pathlib import Path

from wasmetal.device.base import DeviceInfo, HostPages
from wasmetal.errors import WrapRefusedError

_MAPS = Path("/proc/self/maps")


def check_pages(info: DeviceInfo, pages: HostPages) -> bool:
    """Whether pages are writable (a mapped file's are not). Raises WrapRefusedError if they cannot be imported."""
    address, nbytes, alignment = pages.address, pages.nbytes, info.page_alignment
    if nbytes <= 0 or address % alignment or nbytes % alignment:
        raise WrapRefusedError(f"address and length must be multiples of {alignment}")
    writable = not info.wraps_files or pages.view().flags.writeable
    if obstacle := find_obstacle(address, nbytes, write=writable):
        raise WrapRefusedError(obstacle)
    return writable


def find_obstacle(address: int, nbytes: int, *, write: bool = True) -> str | None:
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
