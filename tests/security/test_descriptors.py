"""The process's file descriptors: a guest holds a limited number of them, and the embedder keeps some."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.wasi_probe import WasiProbe
from wasmetal import Guest, Limits, open_device


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("x")
    return tmp_path


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """The process may have 60 more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 60, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def open_until_refused(probe: WasiProbe) -> int:
    opened: list[int] = []
    with pytest.raises(OSError, match="MFILE"):
        opened.extend(probe.open("file") for _ in itertools.count())
    return len(opened)


def test_open_files_are_handles(directory: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with WasiProbe({"/d": directory}, limits=Limits(handles=4)) as probe:
        assert open_until_refused(probe) == 4
        probe.fd_close(5)
        assert open_until_refused(probe) == 1
        probe.fd_renumber(4, 6)  # closes 6
        assert open_until_refused(probe) == 1
        with pytest.raises(OSError, match="BADF"):
            probe.fd_renumber(7, 99)
        probe.fd_close(3)  # the directory itself was granted, and frees nothing
        with pytest.raises(OSError, match="BADF"):
            probe.open("file")
    assert len(os.listdir("/dev/fd")) == before


def test_a_failed_opening_holds_nothing(directory: Path) -> None:
    (directory / "sub").mkdir()
    os.mkfifo(directory / "pipe")
    before = len(os.listdir("/dev/fd"))
    with WasiProbe({"/d": directory}, limits=Limits(handles=2)) as probe:
        for _ in range(10):
            for path in ("none", "pipe", "sub/none", "sub/../../x"):
                with pytest.raises(OSError, match=r"NOENT|NOTSUP|PERM"):
                    probe.open(path)
        assert len(os.listdir("/dev/fd")) == before + 1
        assert open_until_refused(probe) == 2


@pytest.mark.usefixtures("few_descriptors")
def test_the_embedder_keeps_a_quarter(directory: Path) -> None:
    with WasiProbe({"/d": directory}) as first, WasiProbe({"/d": directory}) as second:
        assert open_until_refused(first) > 10
        open_until_refused(second)
        others = [(directory / "file").open() for _ in range(10)]
        with Guest(b"(module)", dirs={"/d": directory}), open_device("cpu"):
            pass
        for each in others:
            each.close()


EXHAUSTED = """
import os, resource, sys, time
import wasmetal
from wasmetal.errors import WasmetalError
what, model = sys.argv[1:]
if what != "device":
    device = wasmetal.open_device("cpu")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    if what == "device":
        wasmetal.open_device("cpu")
    elif what == "list":
        from wasmetal.device import list_devices
        list_devices()
    elif what == "model":
        wasmetal.load_model(model, device)
    elif what == "program":
        wasmetal.Program(f'(module (global i64 (i64.const {int(time.time_ns())})))'.encode())
    else:
        wasmetal.Guest(b"(module)", dirs={"/d": "."})
except WasmetalError as error:
    os.write(1, str(error).encode())
finally:
    for descriptor in held:  # the measurement of coverage opens a file at the end
        os.close(descriptor)
"""


@pytest.mark.parametrize("what", ["device", "list", "model", "program", "guest"])
def test_nothing_but_our_errors_without_descriptors(what: str, tmp_path: Path) -> None:
    """Even if the modules that are needed could not be imported yet."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    ran = subprocess.run(
        [sys.executable, "-c", EXHAUSTED, what, str(tmp_path / "model.gguf")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.stderr == ""
    assert "Too many open files" in ran.stdout
    assert "\n" not in ran.stdout
