"""What WASI tells of a file, and the times that it is given."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.host.errno import Refusal, WasiErrno
from wasmetal.host.wasi_abi import FILESTAT, FstFlags, file_type


def describe(record: NDArray[Any], status: os.stat_result) -> None:
    """Fill a FILESTAT record."""
    record[0] = np.zeros((), FILESTAT)
    record["device"], record["inode"] = status.st_dev % 2**64, status.st_ino
    record["type"], record["links"], record["size"] = file_type(status.st_mode), status.st_nlink, status.st_size
    for name in ("atime", "mtime", "ctime"):
        record[name] = max(getattr(status, f"st_{name}_ns"), 0)


def times(before: os.stat_result, accessed: int, modified: int, flags: int) -> tuple[int, int]:
    """The times that a file is given, in nanoseconds."""

    def chosen(value: int, set_: int, now: int, old: int) -> int:
        if flags & set_ and flags & now:
            raise Refusal(WasiErrno.INVAL, "a time both given and now")
        return value if flags & set_ else time.time_ns() if flags & now else old

    return (
        chosen(accessed, FstFlags.ATIM, FstFlags.ATIM_NOW, before.st_atime_ns),
        chosen(modified, FstFlags.MTIM, FstFlags.MTIM_NOW, before.st_mtime_ns),
    )
