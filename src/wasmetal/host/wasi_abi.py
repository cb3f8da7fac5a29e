"""Records, flags and signatures of WASI preview 1, as in its specification. Its pointers are 32 bits wide."""

from __future__ import annotations

import stat
from enum import IntFlag

import numpy as np

from wasmetal.host.abi import U32, U64

MODULE = "wasi_snapshot_preview1"

CLOCKS: dict[str, tuple[str, ...]] = {"clock_time_get": (U32, U64, U32), "poll_oneoff": (U32, U32, U32, U32)}
"""The functions of ``wasi.Clocks`` and their parameters."""

RANDOM: dict[str, tuple[str, ...]] = {"random_get": (U32, U32)}
"""The function of ``randomness.Randomness`` and its parameters."""

FILES: dict[str, tuple[str, ...]] = {
    "fd_advise": (U32, U64, U64, U32),
    "fd_allocate": (U32, U64, U64),
    "fd_close": (U32,),
    "fd_datasync": (U32,),
    "fd_fdstat_get": (U32, U32),
    "fd_fdstat_set_flags": (U32, U32),
    "fd_fdstat_set_rights": (U32, U64, U64),
    "fd_filestat_get": (U32, U32),
    "fd_filestat_set_size": (U32, U64),
    "fd_filestat_set_times": (U32, U64, U64, U32),
    "fd_pread": (U32, U32, U32, U64, U32),
    "fd_prestat_get": (U32, U32),
    "fd_prestat_dir_name": (U32, U32, U32),
    "fd_pwrite": (U32, U32, U32, U64, U32),
    "fd_read": (U32, U32, U32, U32),
    "fd_readdir": (U32, U32, U32, U64, U32),
    "fd_renumber": (U32, U32),
    "fd_seek": (U32, U64, U32, U32),
    "fd_sync": (U32,),
    "fd_tell": (U32, U32),
    "fd_write": (U32, U32, U32, U32),
}
"""The functions of ``wasi_files.Files`` and their parameters."""

PATHS: dict[str, tuple[str, ...]] = {
    "path_create_directory": (U32, U32, U32),
    "path_filestat_get": (U32, U32, U32, U32, U32),
    "path_filestat_set_times": (U32, U32, U32, U32, U64, U64, U32),
    "path_link": (U32, U32, U32, U32, U32, U32, U32),
    "path_open": (U32, U32, U32, U32, U32, U64, U64, U32, U32),
    "path_readlink": (U32, U32, U32, U32, U32, U32),
    "path_remove_directory": (U32, U32, U32),
    "path_rename": (U32, U32, U32, U32, U32, U32),
    "path_symlink": (U32, U32, U32, U32, U32),
    "path_unlink_file": (U32, U32, U32),
}
"""The functions of ``wasi_paths.Paths`` and their parameters."""


def _record(nbytes: int, /, **fields: tuple[str, int]) -> np.dtype[np.void]:
    formats, offsets = zip(*fields.values(), strict=True)
    description = {"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": nbytes}
    return np.dtype(description, align=True)  # type: ignore[call-overload, no-any-return]


SUBSCRIPTION = _record(
    48, userdata=("<u8", 0), tag=("u1", 8), clock=("<u4", 16), timeout=("<u8", 24), flags=("<u2", 40)
)
EVENT = _record(32, userdata=("<u8", 0), error=("<u2", 8), type=("u1", 10), nbytes=("<u8", 16))
IOVEC = _record(8, address=("<u4", 0), length=("<u4", 4))
PRESTAT = _record(8, kind=("u1", 0), length=("<u4", 4))
FDSTAT = _record(24, type=("u1", 0), flags=("<u2", 2), rights=("<u8", 8), inheriting=("<u8", 16))
DIRENT = _record(24, next=("<u8", 0), inode=("<u8", 8), length=("<u4", 16), type=("u1", 20))
FILESTAT = _record(
    64,
    device=("<u8", 0),
    inode=("<u8", 8),
    type=("u1", 16),
    links=("<u8", 24),
    size=("<u8", 32),
    atime=("<u8", 40),
    mtime=("<u8", 48),
    ctime=("<u8", 56),
)


class OFlags(IntFlag):
    """How a path is opened."""

    CREAT = 1
    DIRECTORY = 2
    EXCL = 4
    TRUNC = 8


class FdFlags(IntFlag):
    """Properties of a descriptor."""

    APPEND = 1
    DSYNC = 2
    NONBLOCK = 4
    RSYNC = 8
    SYNC = 16


class FstFlags(IntFlag):
    """Which times of a file are set."""

    ATIM = 1
    ATIM_NOW = 2
    MTIM = 4
    MTIM_NOW = 8


class Rights(IntFlag):
    """What C libraries ask for when they open a path, and look at afterwards. Nothing else depends on rights."""

    FD_READ = 1 << 1
    FD_WRITE = 1 << 6
    POLL = 1 << 27
    FILE = POLL | 0xBD | 1 << 21 | 1 << 23  # advise, seek, tell, sync, flags, what is known of the file, its times
    FILE_WRITE = FD_WRITE | 1 << 8 | 1 << 22
    DIRECTORY = 0x1FFF_FFFF & ~(1 << 28)


_TYPES = {stat.S_IFBLK: 1, stat.S_IFCHR: 2, stat.S_IFDIR: 3, stat.S_IFREG: 4, stat.S_IFSOCK: 6, stat.S_IFLNK: 7}


def file_type(mode: int) -> int:
    """WASI's type of a file with this mode of the host; 0 if WASI has none for it."""
    return _TYPES.get(stat.S_IFMT(mode), 0)
