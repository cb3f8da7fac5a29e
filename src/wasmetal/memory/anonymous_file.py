"""Files without a name, for what takes a path but is to be written to no disk."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def anonymous_file(data: bytes) -> Iterator[Path]:
    """The path of a file with these bytes, while the ``with`` block runs. What has opened it by then keeps it.

    On Linux it is memory, which nothing can change; elsewhere, a temporary file that has been removed already. Raises
    OSError.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("wasmetal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as removed:
            fd = os.dup(removed.fileno())
    try:
        os.fchmod(fd, 0o400)
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        if hasattr(fcntl, "F_ADD_SEALS"):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield Path(f"/dev/fd/{fd}")
    finally:
        os.close(fd)
