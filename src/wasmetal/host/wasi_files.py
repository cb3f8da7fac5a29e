"""WASI's functions for standard streams and open files, as in its specification.

They work on descriptors of the host. Nothing here blocks for longer than a disk does, because nothing else is opened.
"""

# ruff: noqa: D102

from __future__ import annotations

import fcntl
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.host.account import Account
from wasmetal.host.descriptors import Descriptors, File, Input
from wasmetal.host.errno import Refusal, WasiErrno
from wasmetal.host.streams import Output
from wasmetal.host.view import GuestMemory
from wasmetal.host.wasi_abi import DIRENT, FDSTAT, FILESTAT, IOVEC, PRESTAT, FdFlags, Rights, file_type
from wasmetal.host.wasi_status import describe, times

MOST = 1 << 16
"""Bytes that one call reads or writes; more is a short read or write, as in POSIX."""
_MAX_VECTORS = 1024
_MAX_OFFSET = 2**63 - 1


class Files:
    """What a guest does with descriptors. Each public method is a function of WASI."""

    def __init__(self, descriptors: Descriptors, account: Account) -> None:
        self._descriptors = descriptors
        self._account = account
        self._listed: tuple[File, list[tuple[bytes, int, int]]] | None = None
        """The directory listed last: name, inode and type of its entries."""

    # ---- Descriptors

    def fd_close(self, memory: GuestMemory, fd: int) -> None:
        self._descriptors.remove(fd)

    def fd_renumber(self, memory: GuestMemory, fd: int, to: int) -> None:
        self._descriptors.renumber(fd, to)

    def fd_fdstat_get(self, memory: GuestMemory, fd: int, out: int) -> None:
        record = memory.array(out, 1, FDSTAT)
        held = self._descriptors.get(fd)
        record[0] = np.zeros((), FDSTAT)
        if isinstance(held, File):
            record["type"] = file_type(os.fstat(held.fd).st_mode)
            record["flags"] = FdFlags.APPEND * held.append
            record["rights"] = record["inheriting"] = Rights.DIRECTORY
            if not held.is_directory:
                mode = fcntl.fcntl(held.fd, fcntl.F_GETFL) & os.O_ACCMODE
                readable, writable = mode != os.O_WRONLY, mode != os.O_RDONLY
                record["rights"] = Rights.FILE | readable * Rights.FD_READ | writable * Rights.FILE_WRITE
        else:
            record["type"] = 2 if isinstance(held, Input) and held.is_terminal else 0
            record["rights"] = Rights.POLL | (Rights.FD_READ if isinstance(held, Input) else Rights.FD_WRITE)

    def fd_fdstat_set_flags(self, memory: GuestMemory, fd: int, flags: int) -> None:
        held = self._descriptors.file(fd)
        if flags & ~(FdFlags.APPEND | FdFlags.NONBLOCK):
            raise Refusal(WasiErrno.INVAL, f"flags {flags:#x} cannot be set")
        append = bool(flags & FdFlags.APPEND)
        system = fcntl.fcntl(held.fd, fcntl.F_GETFL)
        fcntl.fcntl(held.fd, fcntl.F_SETFL, system & ~os.O_APPEND | append * os.O_APPEND)
        held.append = append

    def fd_fdstat_set_rights(self, memory: GuestMemory, fd: int, rights: int, inheriting: int) -> None:
        raise Refusal(WasiErrno.NOTSUP, "rights cannot be changed")

    def fd_prestat_get(self, memory: GuestMemory, fd: int, out: int) -> None:
        record = memory.array(out, 1, PRESTAT)
        record[0] = np.zeros((), PRESTAT)
        record["length"] = len(self._granted(fd))

    def fd_prestat_dir_name(self, memory: GuestMemory, fd: int, ptr: int, nbytes: int) -> None:
        name = self._granted(fd)
        if nbytes < len(name):
            raise Refusal(WasiErrno.NAMETOOLONG, f"{len(name)} bytes do not fit in {nbytes}")
        memory.array(ptr, len(name))[:] = np.frombuffer(name, np.uint8)

    # ---- Reading and writing

    def fd_read(self, memory: GuestMemory, fd: int, ptr: int, count: int, out: int) -> None:
        done, buffers = _buffers(memory, ptr, count, out)
        held = self._descriptors.get(fd)
        if isinstance(held, Output):
            raise Refusal(WasiErrno.BADF, "an output cannot be read")
        if isinstance(held, File):
            done[0] = os.readv(held.fd, buffers)
        else:
            data = held.read(len(buffers[0])) if buffers else b""
            done[0] = len(data)
            if data:
                buffers[0][: len(data)] = data

    def fd_write(self, memory: GuestMemory, fd: int, ptr: int, count: int, out: int) -> None:
        done, buffers = _buffers(memory, ptr, count, out)
        held = self._descriptors.get(fd)
        if isinstance(held, Input):
            raise Refusal(WasiErrno.BADF, "an input cannot be written")
        if isinstance(held, File):
            done[0] = self._write(held, buffers, None)
        else:
            data = b"".join(buffers)
            if data and held(data) < 0:
                raise Refusal(WasiErrno.IO, "the output cannot be written")
            done[0] = len(data)

    def fd_pread(self, memory: GuestMemory, fd: int, ptr: int, count: int, offset: int, out: int) -> None:
        done, buffers = _buffers(memory, ptr, count, out)
        done[0] = os.preadv(self._file(fd).fd, buffers, _offset(offset))

    def fd_pwrite(self, memory: GuestMemory, fd: int, ptr: int, count: int, offset: int, out: int) -> None:
        done, buffers = _buffers(memory, ptr, count, out)
        done[0] = self._write(self._file(fd), buffers, _offset(offset))

    def fd_seek(self, memory: GuestMemory, fd: int, delta: int, whence: int, out: int) -> None:
        position = memory.array(out, 1, np.uint64)
        if whence > 2:
            raise Refusal(WasiErrno.INVAL, f"whence {whence} is not known")
        signed = delta - (delta >> 63 << 64)
        position[0] = os.lseek(self._file(fd).fd, signed, (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)[whence])

    def fd_tell(self, memory: GuestMemory, fd: int, out: int) -> None:
        self.fd_seek(memory, fd, 0, 1, out)

    def fd_sync(self, memory: GuestMemory, fd: int) -> None:
        os.fsync(self._descriptors.file(fd).fd)

    def fd_datasync(self, memory: GuestMemory, fd: int) -> None:
        self.fd_sync(memory, fd)

    def fd_advise(self, memory: GuestMemory, fd: int, offset: int, nbytes: int, advice: int) -> None:
        self._file(fd)
        if advice > 5:
            raise Refusal(WasiErrno.INVAL, f"advice {advice} is not known")

    def fd_allocate(self, memory: GuestMemory, fd: int, offset: int, nbytes: int) -> None:
        raise Refusal(WasiErrno.NOTSUP, "space cannot be reserved")

    # ---- What is known of a file

    def fd_filestat_get(self, memory: GuestMemory, fd: int, out: int) -> None:
        record = memory.array(out, 1, FILESTAT)
        held = self._descriptors.get(fd)
        record[0] = np.zeros((), FILESTAT)
        if isinstance(held, File):
            describe(record, os.fstat(held.fd))

    def fd_filestat_set_size(self, memory: GuestMemory, fd: int, size: int) -> None:
        held = self._file(fd)
        with self._account.extending(max(_offset(size) - os.fstat(held.fd).st_size, 0)):
            os.ftruncate(held.fd, size)

    def fd_filestat_set_times(self, memory: GuestMemory, fd: int, accessed: int, modified: int, flags: int) -> None:
        held = self._descriptors.file(fd).changeable()
        os.utime(held.fd, ns=times(os.fstat(held.fd), accessed, modified, flags))

    def fd_readdir(self, memory: GuestMemory, fd: int, ptr: int, nbytes: int, cookie: int, out: int) -> None:
        room, used = memory.array(ptr, nbytes), memory.array(out, 1, np.uint32)
        directory = self._descriptors.directory(fd)
        if self._listed is None or self._listed[0] is not directory or cookie == 0:
            self._listed = directory, _entries(directory.fd)
        at = 0
        for index, (name, inode, type_) in enumerate(self._listed[1][cookie:], cookie + 1):
            entry = np.zeros((), DIRENT)
            entry["next"], entry["inode"], entry["length"], entry["type"] = index, inode, len(name), type_
            data = np.frombuffer(entry.tobytes() + name, np.uint8)[: nbytes - at]
            room[at : at + len(data)] = data
            at += len(data)
            if at == nbytes:  # full: the guest asks again, from the last whole entry on
                break
        used[0] = at

    # ---- Shared

    def _granted(self, fd: int) -> bytes:
        name = self._descriptors.file(fd).name
        if name is None:
            raise Refusal(WasiErrno.BADF, f"descriptor {fd} was not granted")
        return name

    def _file(self, fd: int) -> File:
        held = self._descriptors.get(fd)
        if not isinstance(held, File):
            raise Refusal(WasiErrno.SPIPE, f"descriptor {fd} is a stream")
        if held.is_directory:
            raise Refusal(WasiErrno.ISDIR, f"descriptor {fd} is a directory")
        return held

    def _write(self, held: File, buffers: list[memoryview], offset: int | None) -> int:
        """Write at ``offset``, or at the file's position; return the number of bytes written."""
        count = sum(map(len, buffers))
        size = os.fstat(held.fd).st_size
        at = size if held.append else os.lseek(held.fd, 0, os.SEEK_CUR) if offset is None else offset
        with self._account.extending(max(at + count - size, 0)):
            return os.writev(held.fd, buffers) if offset is None else os.pwritev(held.fd, buffers, offset)


def _buffers(memory: GuestMemory, ptr: int, count: int, out: int) -> tuple[NDArray[Any], list[memoryview]]:
    """Where the guest reads how many bytes were done, and its buffers, not empty, up to MOST bytes."""
    done = memory.array(out, 1, np.uint32)
    if count > _MAX_VECTORS:
        raise Refusal(WasiErrno.INVAL, f"{count} buffers; at most {_MAX_VECTORS} are possible")
    buffers, room = [], MOST
    words = memory.raw(ptr, count, IOVEC).view(np.uint32).tolist()  # to view them as records would take longer
    for at, length in zip(words[::2], words[1::2], strict=True):
        buffer = memory.array(at, length)
        if length and room:
            buffers.append(buffer.data[:room])
            room -= len(buffers[-1])
    return done, buffers


def _offset(value: int) -> int:
    if value > _MAX_OFFSET:
        raise Refusal(WasiErrno.INVAL, f"offset {value} is too large")
    return value


def _entries(fd: int) -> list[tuple[bytes, int, int]]:
    """Name, inode and type of what is in a directory, in the order of the names."""
    itself = os.fstat(fd).st_ino
    with os.scandir(fd) as found:
        entries = [(os.fsencode(each.name), each.inode(), _entry_type(each)) for each in found]
    return [(b".", itself, 3), (b"..", itself, 3), *sorted(entries)]


def _entry_type(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return 7
    return 3 if entry.is_dir(follow_symlinks=False) else 4 if entry.is_file(follow_symlinks=False) else 0
