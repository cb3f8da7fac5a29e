"""Granted directories: what a guest can reach, change and fill, and what cannot hold it up."""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.wasi_probe import OUT, READ, WRITE, WasiProbe
from wasmetal import Dir, Limits
from wasmetal.errors import GuestError, LimitError
from wasmetal.host import wasi_abi
from wasmetal.host.wasi_abi import FILESTAT, FdFlags, OFlags
from wasmetal.host.wasi_files import Files
from wasmetal.host.wasi_paths import Paths

CREATE = OFlags.CREAT


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The directory that is granted; beside it is a secret."""
    (tmp_path / "secret").write_text("SECRET")
    inside = tmp_path / "inside"
    (inside / "sub" / "deep").mkdir(parents=True)
    (inside / "file").write_text("mine")
    (inside / "sub" / "other").write_text("other")
    return inside


@pytest.fixture
def probe(inside: Path) -> Iterator[WasiProbe]:
    with WasiProbe({"/d": inside}) as probe:
        yield probe


def refused(errno: str) -> object:
    return pytest.raises(OSError, match=rf"\b{errno}\b")


# ---- Reading and writing


def test_a_file_is_written_and_read(probe: WasiProbe, inside: Path) -> None:
    fd = probe.open("sub/new", READ | WRITE, CREATE)
    assert probe.write(fd, b"hello world") == 11
    assert probe.write(fd, b"HE", 0) == 2
    probe.fd_seek(fd, -5, 2, OUT)
    assert probe.read(fd) == b"world"
    assert (inside / "sub" / "new").read_bytes() == b"HEllo world"
    probe.fd_filestat_get(fd, OUT)
    assert probe.out(FILESTAT)["size"] == 11
    probe.fd_filestat_set_size(fd, 2)
    probe.fd_close(fd)
    assert (inside / "sub" / "new").read_bytes() == b"HE"


def test_appending(probe: WasiProbe, inside: Path) -> None:
    fd = probe.open("file", WRITE, 0, FdFlags.APPEND)
    probe.write(fd, b" and more")
    assert (inside / "file").read_text() == "mine and more"


def test_a_read_takes_what_one_call_may(probe: WasiProbe, inside: Path) -> None:
    (inside / "large").write_bytes(bytes(100_000))
    fd = probe.open("large")
    assert [len(probe.read(fd, 200_000)) for _ in range(3)] == [65536, 100_000 - 65536, 0]


@pytest.mark.parametrize("room", [40, 100, 4096])
def test_listing_with_little_room(probe: WasiProbe, inside: Path, room: int) -> None:
    for i in range(20):
        (inside / f"n{i:02}").touch()
    assert probe.names(room=room) == sorted([".", "..", *(each.name for each in inside.iterdir())])


# ---- Nothing outside


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/passwd",
        "sub/../../secret",
        "sub/deep/../../../secret",
        "absolute",
        "relative",
        "up/secret",
        "up",
        "twice/secret",
        "..",
        "./../inside/file",
        "sub/back/../../../secret",
        "process/environ",
    ],
)
def test_no_path_leads_out(probe: WasiProbe, inside: Path, path: str) -> None:
    (inside / "absolute").symlink_to(inside.parent / "secret")
    (inside / "relative").symlink_to("../secret")
    (inside / "up").symlink_to("..")
    (inside / "twice").symlink_to("sub/deep/../../..")
    (inside / "sub" / "back").symlink_to("deep")
    (inside / "process").symlink_to("/proc/self")
    for follow in (1, 0):
        with pytest.raises(OSError, match=r"PERM|LOOP"):
            probe.open(path, follow=follow)
    with pytest.raises(OSError, match="PERM"):
        probe.path_filestat_get(3, 1, path, OUT)


def test_links_that_stay_inside_are_followed(probe: WasiProbe, inside: Path) -> None:
    (inside / "sub" / "link").symlink_to("../file")
    (inside / "sub" / "dir").symlink_to("deep/../.")
    assert probe.read(probe.open("sub/link")) == b"mine"
    assert probe.read(probe.open("sub/dir/other")) == b"other"
    assert probe.read(probe.open("sub/deep/../../sub/./other")) == b"other"


def test_links_in_a_circle(probe: WasiProbe, inside: Path) -> None:
    (inside / "loop").symlink_to("loop")
    (inside / "a").symlink_to("b/x")
    (inside / "b").symlink_to("a/x")
    for path in ("loop", "a", "a/../b"):
        with refused("LOOP"):
            probe.open(path)


def test_a_directory_is_the_root_of_its_paths(probe: WasiProbe) -> None:
    sub = probe.open("sub", READ, OFlags.DIRECTORY)
    with refused("PERM"):
        probe.open("../file", fd=sub)
    assert probe.read(probe.open("deep/../other", fd=sub)) == b"other"


def test_a_path_that_costs_too_much(probe: WasiProbe, inside: Path) -> None:
    """``..`` walks to where it leads again; that does not become quadratic."""
    begin = time.monotonic()
    deep = inside.joinpath(*["x"] * 60)
    deep.mkdir(parents=True)
    assert probe.open("x/" * 60 + "../x/" * 10)
    with refused("NAMETOOLONG"):
        probe.open("x/" * 60 + "../x/" * 700)
    assert time.monotonic() - begin < 5
    with refused("NAMETOOLONG"):
        probe.open("a/" * 2049)


def test_directories_that_are_moved_while_a_path_is_walked(probe: WasiProbe, inside: Path) -> None:
    """Another process moves ``sub/deep`` out and in, so that its ``..`` leads outside at times."""
    (inside.parent / "other").write_text("OUTSIDE")
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            os.rename(inside / "sub" / "deep", inside.parent / "deep")
            os.rename(inside.parent / "deep", inside / "sub" / "deep")

    mover = threading.Thread(target=move)
    mover.start()
    try:
        found = 0
        for _ in range(300):
            try:
                fd = probe.open("sub/deep/../other")
            except OSError:
                continue
            assert probe.read(fd) == b"other"
            probe.fd_close(fd)
            found += 1
    finally:
        stop.set()
        mover.join()
    assert found


# ---- Links that lead out cannot be made


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "sub/../../secret", "..", "sub/..", "/", ""])
def test_no_link_is_made_that_may_lead_out(probe: WasiProbe, inside: Path, target: str) -> None:
    before = sorted(inside.rglob("*"))
    with refused("PERM"):
        probe.path_symlink(target, 3, "link")
    assert sorted(inside.rglob("*")) == before


def test_links_lead_inside_wherever_they_are_moved(probe: WasiProbe, inside: Path) -> None:
    probe.path_symlink("deep/x", 3, "sub/link")
    probe.path_rename(3, "sub/link", 3, "moved")
    probe.path_rename(3, "sub", 3, "elsewhere")
    for each in inside.rglob("*"):
        assert each.resolve().is_relative_to(inside.resolve())


def test_a_link_upwards_is_not_moved(probe: WasiProbe, inside: Path) -> None:
    """The host made it; it leads to ``file`` from where it is, and would lead out from above."""
    (inside / "sub" / "link").symlink_to("../file")
    for call in (
        lambda: probe.path_rename(3, "sub/link", 3, "link"),
        lambda: probe.path_link(3, 0, "sub/link", 3, "link"),
    ):
        with refused("PERM"):
            call()
    probe.path_unlink_file(3, "sub/link")
    (inside / "sub" / "down").symlink_to("deep/x")
    probe.path_rename(3, "sub/down", 3, "down")


# ---- What would block


@pytest.mark.parametrize("rights", [READ, WRITE, READ | WRITE])
def test_a_pipe_is_not_opened(inside: Path, rights: int) -> None:
    os.mkfifo(inside / "pipe")
    (inside / "link").symlink_to("pipe")
    with WasiProbe({"/d": inside}, limits=Limits(wall_seconds=20)) as probe:
        for path in ("pipe", "link"):
            with refused("NOTSUP"):
                probe.open(path, rights)
        assert probe.names()[-1] == "sub"


def test_a_pipe_that_takes_the_place_of_a_file(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the opening."""
    os.mkfifo(inside / "pipe")
    real = os.stat
    with WasiProbe({"/d": inside}, limits=Limits(wall_seconds=20)) as probe:
        monkeypatch.setattr("os.stat", lambda *args, **kwargs: real(inside / "file"))
        with refused("NOTSUP"):
            probe.open("pipe")


def test_input_that_never_comes() -> None:
    """A guest that waits for the process's standard input is stopped at its limit."""
    reader, writer = os.pipe()
    given = os.dup(0)
    os.dup2(reader, 0)
    try:
        with WasiProbe({}, stdin="inherit", limits=Limits(wall_seconds=0.3)) as probe:
            begin = time.monotonic()
            with pytest.raises(LimitError, match="wall time"):
                probe.read(0)
            assert time.monotonic() - begin < 5
    finally:
        os.dup2(given, 0)
        for fd in (reader, writer, given):
            os.close(fd)


# ---- Directories that may only be read


def test_a_directory_for_reading_only(inside: Path) -> None:
    (inside / "link").symlink_to("file")
    with WasiProbe({"/r": Dir(inside, read_only=True), "/w": inside.parent}) as probe:
        assert probe.read(probe.open("file")) == b"mine"
        assert "sub" in probe.names()
        sub = probe.open("sub", READ, OFlags.DIRECTORY)
        file = probe.open("file")
        changes = [
            lambda: probe.open("file", WRITE),
            lambda: probe.open("file", READ, OFlags.TRUNC),
            lambda: probe.open("new", READ, CREATE),
            lambda: probe.open("new", WRITE, CREATE, fd=sub),
            lambda: probe.path_create_directory(3, "new"),
            lambda: probe.path_unlink_file(3, "file"),
            lambda: probe.path_unlink_file(sub, "other"),
            lambda: probe.path_remove_directory(3, "sub/deep"),
            lambda: probe.path_symlink("file", 3, "new"),
            lambda: probe.path_rename(3, "file", 3, "new"),
            lambda: probe.path_rename(3, "file", 4, "new"),
            lambda: probe.path_rename(4, "secret", 3, "new"),
            lambda: probe.path_link(3, 0, "file", 4, "new"),
            lambda: probe.path_link(4, 0, "secret", 3, "new"),
            lambda: probe.path_filestat_set_times(3, 0, "file", 0, 0, 1 | 4),
            lambda: probe.fd_filestat_set_times(file, 0, 0, 1 | 4),
            lambda: probe.fd_filestat_set_times(3, 0, 0, 1 | 4),
        ]
        before = snapshot(inside.parent)
        for change in changes:
            with refused("ROFS"):
                change()
        for change in (lambda: probe.write(file, b"x"), lambda: probe.fd_filestat_set_size(file, 0)):
            with pytest.raises(OSError, match=r"BADF|INVAL"):
                change()
        assert snapshot(inside.parent) == before


def snapshot(directory: Path) -> list[object]:
    return sorted((str(each), each.lstat().st_mtime_ns, each.lstat().st_size) for each in directory.rglob("*"))


# ---- Quotas


def test_bytes_added_to_files(inside: Path) -> None:
    with WasiProbe({"/d": inside}, limits=Limits(disk_bytes=1000)) as probe:
        fd = probe.open("new", READ | WRITE, CREATE)
        probe.write(fd, bytes(600))
        probe.write(fd, bytes(600), 0)  # nothing is added
        for more in (
            lambda: probe.write(fd, bytes(401)),
            lambda: probe.write(fd, b"x", 1000),
            lambda: probe.write(fd, b"x", 2**40),
            lambda: probe.fd_filestat_set_size(fd, 1001),
            lambda: probe.fd_filestat_set_size(fd, 2**62),
        ):
            with refused("DQUOT"):
                more()
        other = probe.open("file", WRITE, 0, FdFlags.APPEND)
        probe.write(other, bytes(400))
        with refused("DQUOT"):
            probe.write(other, b"x")
        with refused("DQUOT"):
            probe.write(other, b"x", 0)  # appended, wherever it is meant to go
        probe.fd_filestat_set_size(fd, 0)
        with refused("DQUOT"):  # nothing is given back
            probe.write(fd, b"x", 0)
    assert sum(each.stat().st_size for each in inside.rglob("*") if each.is_file()) <= 1000 + 4 + 5


def test_files_created(inside: Path) -> None:
    with WasiProbe({"/d": inside}, limits=Limits(files=4)) as probe:
        with refused("EXIST"):  # does not count
            probe.path_create_directory(3, "sub")
        probe.fd_close(probe.open("new", WRITE, CREATE))
        probe.fd_close(probe.open("new", WRITE, CREATE))
        probe.path_create_directory(3, "directory")
        probe.path_symlink("file", 3, "link")
        probe.path_link(3, 0, "file", 3, "hard")
        for more in (
            lambda: probe.open("more", WRITE, CREATE),
            lambda: probe.path_create_directory(3, "more"),
            lambda: probe.path_symlink("file", 3, "more"),
            lambda: probe.path_link(3, 0, "file", 3, "more"),
        ):
            with refused("DQUOT"):
                more()
        assert "more" not in probe.names()
        assert probe.read(probe.open("file", READ, CREATE)) == b"mine"


# ---- Arguments


@pytest.mark.parametrize("path", ["", "a\0b", "f" * 5000])
def test_odd_paths(probe: WasiProbe, path: str) -> None:
    for call in (probe.open, lambda path: probe.path_unlink_file(3, path)):
        with pytest.raises(OSError, match=r"NOENT|INVAL|NAMETOOLONG"):
            call(path)


def test_pointers_outside_the_memory(probe: WasiProbe) -> None:
    end = 8 * 65536
    for name, arguments in {
        "fd_write": (1, end - 4, 1, OUT),
        "fd_read": (0, 0, 1025, OUT),
        "path_open": (3, 0, end - 1, 2, 0, 2, 0, 0, OUT),
        "fd_readdir": (3, end - 10, 11, 0, OUT),
        "fd_prestat_dir_name": (3, end - 1, 2),
        "fd_filestat_get": (3, end - 8),
    }.items():
        assert probe.guest.call(name, *arguments) in (21, 28), name


def test_descriptors_that_are_something_else(probe: WasiProbe) -> None:
    file = probe.open("file")
    for call, errno in (
        (lambda: probe.open("x", fd=file), "NOTDIR"),
        (lambda: probe.open("x", fd=1), "BADF"),
        (lambda: probe.read(3), "ISDIR"),
        (lambda: probe.read(1), "BADF"),
        (lambda: probe.write(0, b"x"), "BADF"),
        (lambda: probe.write(file, b"x"), "BADF"),
        (lambda: probe.fd_seek(1, 0, 0, OUT), "SPIPE"),
        (lambda: probe.fd_close(77), "BADF"),
        (lambda: probe.fd_prestat_get(file, OUT), "BADF"),
        (lambda: probe.open("file", READ, OFlags.DIRECTORY), "NOTDIR"),
        (lambda: probe.open("sub", WRITE), "ISDIR"),
        (lambda: probe.open("file/x"), "NOTDIR"),
        (lambda: probe.fd_seek(file, -1, 0, OUT), "INVAL"),
    ):
        with refused(errno):
            call()


def test_a_directory_that_cannot_be_granted(inside: Path) -> None:
    for path in (inside / "file", inside / "none", "a\0b"):
        with pytest.raises(GuestError, match="cannot grant directory"):
            WasiProbe({"/d": path})


@pytest.mark.parametrize(("kind", "functions"), [(Files, wasi_abi.FILES), (Paths, wasi_abi.PATHS)])
def test_each_function_is_there_with_its_parameters(kind: type, functions: dict[str, tuple[str, ...]]) -> None:
    for name, kinds in functions.items():
        assert len(inspect.signature(getattr(kind, name)).parameters) == len(kinds) + 2, name
