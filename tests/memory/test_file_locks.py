"""Locks of files that are mapped, and of files that guests write: one or the other."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmetal.memory.file_locks import lock_for_mapping, lock_for_writing


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("locks") / "file"
    path.write_bytes(b"content")
    return path


class Users:
    """Descriptors of one file that are locked, each of its own opening."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.open: list[tuple[int, bool]] = []

    def begin(self, writing: bool, flags: int = os.O_WRONLY) -> bool:
        fd = os.open(self._path, flags if writing else os.O_RDONLY)
        if not (lock_for_writing(fd) if writing else lock_for_mapping(fd)):
            os.close(fd)
            return False
        self.open.append((fd, writing))
        return True

    def end(self, index: int) -> None:
        os.close(self.open.pop(index)[0])


@pytest.fixture
def users(path: Path) -> Iterator[Users]:
    users = Users(path)
    yield users
    while users.open:
        users.end(0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.sampled_from([os.O_WRONLY, os.O_RDWR]))))
def test_mapped_or_written(path: Path, steps: list[tuple[bool, int, int]]) -> None:
    """Any number of one kind at a time, whatever came before."""
    with ExitStack() as stack:
        users = Users(path)
        stack.callback(lambda: [users.end(0) for _ in list(users.open)])
        for writing, ending, flags in steps:
            others = any(other is not writing for _, other in users.open)
            assert users.begin(writing, flags) is not others
            if ending < len(users.open):
                users.end(ending)


def test_a_lock_lasts_as_long_as_the_mapping(path: Path, users: Users) -> None:
    fd = os.open(path, os.O_RDONLY)
    assert lock_for_mapping(fd)
    mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    os.close(fd)
    os.close(os.open(path, os.O_RDONLY))  # locks of a process, unlike these, would end now
    assert not users.begin(writing=True)
    mapped.close()
    assert users.begin(writing=True)


def test_other_processes(path: Path, users: Users) -> None:
    """A lock holds for all processes, and ends with its own, however that ends."""
    script = (
        "import os, sys; from wasmetal.memory.file_locks import *\n"
        "fd = os.open(sys.argv[1], os.O_RDWR); print(lock_for_writing(fd), flush=True); sys.stdin.read()"
    )

    def writer() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    for held in (False, True):
        if held:
            assert users.begin(writing=False)
        with writer() as process:
            assert process.stdout
            assert process.stdout.readline() == f"{not held}\n"
            assert users.begin(writing=False) is held
            process.kill()
    assert not users.begin(writing=True)


def test_descriptors_of_the_wrong_kind(path: Path) -> None:
    for flags, lock in ((os.O_WRONLY, lock_for_mapping), (os.O_RDONLY, lock_for_writing)):
        fd = os.open(path, flags)
        with pytest.raises(OSError, match="Bad file descriptor"):
            lock(fd)
        os.close(fd)


def test_a_file_system_without_locks(path: Path, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is mapped there, so that guests may write. Where locks are only not to be had, they may not."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    for number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK, errno.EPERM):
        with pytest.raises(OSError, match=os.strerror(number)):
            users.begin(writing=False)
        if number in (errno.ENOLCK, errno.EPERM):
            with pytest.raises(OSError, match=os.strerror(number)):
                users.begin(writing=True)
        else:
            assert users.begin(writing=True)
