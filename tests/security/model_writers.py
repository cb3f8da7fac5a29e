"""Guests that were granted their model's folder, and do all they can to the model's file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.security.wasi_probe import READ, WRITE, WasiProbe
from wasmetal.host.wasi_abi import FdFlags, OFlags

NAME = "tiny.gguf"


def _linked(probe: WasiProbe) -> None:
    probe.path_link(3, 0, NAME, 3, "linked")
    try:
        probe.open("linked", WRITE)
    finally:
        probe.path_unlink_file(3, "linked")


def _through_a_symbolic_link(probe: WasiProbe) -> None:
    probe.path_symlink(NAME, 3, "symbolic")
    try:
        probe.open("symbolic", WRITE)
    finally:
        probe.path_unlink_file(3, "symbolic")


def _moved(probe: WasiProbe) -> None:
    probe.path_rename(3, NAME, 3, "moved")
    try:
        probe.open("moved", WRITE, OFlags.TRUNC)
    finally:
        probe.path_rename(3, "moved", 3, NAME)


def _written(probe: WasiProbe) -> None:
    probe.write(probe.open(NAME, WRITE), b"\xff" * 4096, 4096)


def _shortened(probe: WasiProbe) -> None:
    probe.fd_filestat_set_size(probe.open(NAME, READ | WRITE), 0)


def _shortened_unopened_for_writing(probe: WasiProbe) -> None:
    probe.fd_filestat_set_size(probe.open(NAME, READ), 0)


WAYS: tuple[Callable[[WasiProbe], object], ...] = (
    _written,
    _shortened,
    _shortened_unopened_for_writing,
    lambda probe: probe.open(NAME, READ, OFlags.TRUNC),
    lambda probe: probe.open(NAME, WRITE, OFlags.TRUNC | OFlags.CREAT),
    lambda probe: probe.open(NAME, WRITE, 0, FdFlags.APPEND),
    _linked,
    _through_a_symbolic_link,
    _moved,
)
"""Ways to change the bytes of the file."""


def attempts(probe: WasiProbe) -> set[str]:
    """The errors that the ways end in."""
    return {_error(lambda way=way: way(probe)) for way in WAYS}  # type: ignore[misc]


def replace(probe: WasiProbe) -> None:
    """What a guest may do: put another file in the place of the model's, and remove that."""
    probe.write(probe.open("other", WRITE, OFlags.CREAT), b"something else")
    probe.path_rename(3, "other", 3, NAME)
    probe.path_unlink_file(3, NAME)


def attack(folder: str) -> None:
    """In a process of its own: print the errors."""
    with WasiProbe({"/models": Path(folder)}) as probe:
        print(*sorted(attempts(probe)))
        replace(probe)


def write_when_told(folder: str) -> None:
    """In a process of its own: have the file open for writing, and shorten it when a line comes from standard input."""
    with WasiProbe({"/models": Path(folder)}) as probe:
        fd = probe.open(NAME, WRITE)
        print("open", flush=True)
        sys.stdin.readline()
        probe.fd_filestat_set_size(fd, 0)
        print("shortened", flush=True)
        sys.stdin.readline()


def _error(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        return str(error.strerror)
    return "none"
