"""WASI's functions for paths, as in its specification.

They work beneath granted directories only (``paths.py``). Only files and directories are opened, so that no call waits
for the other end of a pipe. Symbolic links can be created only if they lead downwards.
"""

# ruff: noqa: D102

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from wasmetal.host.account import Account
from wasmetal.host.descriptors import Descriptors, File
from wasmetal.host.errno import Refusal, WasiErrno
from wasmetal.host.paths import leads_down, located
from wasmetal.host.view import GuestMemory
from wasmetal.host.wasi_abi import FILESTAT, FdFlags, OFlags, Rights
from wasmetal.host.wasi_status import describe, times

_MAX_PATH = 4096
_FOLLOW = 1


class Paths:
    """What a guest does in its directories. Each public method is a function of WASI."""

    def __init__(self, descriptors: Descriptors, account: Account) -> None:
        self._descriptors = descriptors
        self._account = account

    def path_open(
        self,
        memory: GuestMemory,
        fd: int,
        follow: int,
        ptr: int,
        nbytes: int,
        oflags: int,
        rights: int,
        inheriting: int,
        fdflags: int,
        out: int,
    ) -> None:
        number = memory.array(out, 1, np.uint32)
        with self._located(memory, fd, ptr, nbytes, bool(follow & _FOLLOW)) as (directory, parent, name):
            try:
                mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            except FileNotFoundError:
                if not oflags & OFlags.CREAT:
                    raise
                mode = 0
            if mode and oflags & OFlags.CREAT and oflags & OFlags.EXCL:
                raise Refusal(WasiErrno.EXIST, "the file exists")
            flags = _open_flags(mode, oflags, rights, fdflags)
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                directory.changeable()

            def make() -> int:
                if flags & os.O_CREAT:
                    with self._account.creating():
                        return os.open(name, flags, 0o666, dir_fd=parent)
                return os.open(name, flags, dir_fd=parent)

            writing = bool(flags & (os.O_WRONLY | os.O_RDWR))
            opened = self._descriptors.open(make, directory.read_only, writing, bool(flags & os.O_APPEND))
        try:
            if oflags & OFlags.TRUNC:  # not when it is opened: only now is it known that the file may be written
                os.ftruncate(self._descriptors.file(opened).fd, 0)
        except BaseException:
            self._descriptors.remove(opened)
            raise
        number[0] = opened

    def path_filestat_get(self, memory: GuestMemory, fd: int, flags: int, ptr: int, nbytes: int, out: int) -> None:
        record = memory.array(out, 1, FILESTAT)
        with self._located(memory, fd, ptr, nbytes, bool(flags & _FOLLOW)) as (_, parent, name):
            describe(record, os.stat(name, dir_fd=parent, follow_symlinks=False))

    def path_filestat_set_times(
        self, memory: GuestMemory, fd: int, flags: int, ptr: int, nbytes: int, accessed: int, modified: int, set_: int
    ) -> None:
        with self._located(memory, fd, ptr, nbytes, bool(flags & _FOLLOW)) as (directory, parent, name):
            directory.changeable()
            before = os.stat(name, dir_fd=parent, follow_symlinks=False)
            ns = times(before, accessed, modified, set_)
            os.utime(name, ns=ns, dir_fd=parent, follow_symlinks=False)

    def path_create_directory(self, memory: GuestMemory, fd: int, ptr: int, nbytes: int) -> None:
        with self._located(memory, fd, ptr, nbytes) as (directory, parent, name):
            directory.changeable()
            with self._account.creating():
                os.mkdir(name, dir_fd=parent)

    def path_remove_directory(self, memory: GuestMemory, fd: int, ptr: int, nbytes: int) -> None:
        with self._located(memory, fd, ptr, nbytes) as (directory, parent, name):
            directory.changeable()
            os.rmdir(name, dir_fd=parent)

    def path_unlink_file(self, memory: GuestMemory, fd: int, ptr: int, nbytes: int) -> None:
        with self._located(memory, fd, ptr, nbytes) as (directory, parent, name):
            directory.changeable()
            os.unlink(name, dir_fd=parent)

    def path_readlink(
        self, memory: GuestMemory, fd: int, ptr: int, nbytes: int, buffer: int, room: int, out: int
    ) -> None:
        target, used = memory.array(buffer, room), memory.array(out, 1, np.uint32)
        with self._located(memory, fd, ptr, nbytes) as (_, parent, name):
            data = np.frombuffer(os.readlink(name, dir_fd=parent), np.uint8)[:room]
        target[: len(data)] = data
        used[0] = len(data)

    def path_symlink(self, memory: GuestMemory, ptr: int, nbytes: int, fd: int, to: int, to_nbytes: int) -> None:
        target = _path(memory, ptr, nbytes)
        if not leads_down(target):
            raise Refusal(WasiErrno.PERM, "a symbolic link may lead only to what is beside or below it")
        with self._located(memory, fd, to, to_nbytes) as (directory, parent, name):
            directory.changeable()
            with self._account.creating():
                os.symlink(target, name, dir_fd=parent)

    def path_link(
        self, memory: GuestMemory, fd: int, flags: int, ptr: int, nbytes: int, to_fd: int, to: int, to_nbytes: int
    ) -> None:
        if flags & _FOLLOW:
            raise Refusal(WasiErrno.INVAL, "a link to what a symbolic link leads to")
        with (
            self._located(memory, fd, ptr, nbytes) as (old, parent, name),
            self._located(memory, to_fd, to, to_nbytes) as (new, to_parent, to_name),
        ):
            old.changeable(), new.changeable()  # a link in another directory would make a read-only file writable
            _check_movable(parent, name)
            with self._account.creating():
                os.link(name, to_name, src_dir_fd=parent, dst_dir_fd=to_parent, follow_symlinks=False)

    def path_rename(
        self, memory: GuestMemory, fd: int, ptr: int, nbytes: int, to_fd: int, to: int, to_nbytes: int
    ) -> None:
        with (
            self._located(memory, fd, ptr, nbytes) as (old, parent, name),
            self._located(memory, to_fd, to, to_nbytes) as (new, to_parent, to_name),
        ):
            old.changeable(), new.changeable()
            _check_movable(parent, name)
            os.rename(name, to_name, src_dir_fd=parent, dst_dir_fd=to_parent)

    @contextmanager
    def _located(
        self, memory: GuestMemory, fd: int, ptr: int, nbytes: int, follow: bool = False
    ) -> Iterator[tuple[File, int, bytes]]:
        """The guest's directory, and the host's directory and the name in it that a path leads to."""
        directory = self._descriptors.directory(fd)
        with located(directory.fd, _path(memory, ptr, nbytes), follow) as (parent, name):
            yield directory, parent, name


def _open_flags(mode: int, oflags: int, rights: int, fdflags: int) -> int:
    """How the host opens something of this mode; 0 if it does not exist. Raises Refusal if the guest may not."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    if stat.S_ISDIR(mode):
        if oflags & (OFlags.TRUNC | OFlags.CREAT) or (rights & Rights.FD_WRITE and not oflags & OFlags.DIRECTORY):
            raise Refusal(WasiErrno.ISDIR, "a directory is not opened as a file")
        return flags | os.O_DIRECTORY
    if oflags & OFlags.DIRECTORY:
        raise Refusal(WasiErrno.NOTDIR, "not a directory")
    if stat.S_ISLNK(mode):
        raise Refusal(WasiErrno.LOOP, "a symbolic link")
    if mode and not stat.S_ISREG(mode):
        raise Refusal(WasiErrno.NOTSUP, "neither a file nor a directory")
    if fdflags & ~(FdFlags.APPEND | FdFlags.DSYNC | FdFlags.NONBLOCK | FdFlags.SYNC):
        raise Refusal(WasiErrno.NOTSUP, f"flags {fdflags:#x} are not supported")
    write = bool(rights & Rights.FD_WRITE or oflags & OFlags.TRUNC)
    flags |= (os.O_RDWR if rights & Rights.FD_READ else os.O_WRONLY) if write else os.O_RDONLY
    flags |= (os.O_CREAT | os.O_EXCL) * (mode == 0)
    flags |= os.O_APPEND * bool(fdflags & FdFlags.APPEND)
    return flags | os.O_SYNC * bool(fdflags & (FdFlags.DSYNC | FdFlags.SYNC))


def _check_movable(parent: int, name: bytes) -> None:
    """Raise PERM for a symbolic link, made by the host, that could lead out of the directory once it is moved."""
    is_link = stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    if is_link and not leads_down(os.readlink(name, dir_fd=parent)):
        raise Refusal(WasiErrno.PERM, "a symbolic link upwards cannot be moved")


def _path(memory: GuestMemory, ptr: int, nbytes: int) -> bytes:
    data = memory.array(ptr, nbytes)
    if nbytes > _MAX_PATH:
        raise Refusal(WasiErrno.NAMETOOLONG, f"a path of {nbytes} bytes; at most {_MAX_PATH} are possible")
    path = data.tobytes()
    if b"\0" in path:
        raise Refusal(WasiErrno.INVAL, "a path with a zero byte")
    try:
        path.decode()
    except UnicodeDecodeError as error:
        raise Refusal(WasiErrno.ILSEQ, f"the path is not UTF-8: {error}") from None
    return path
