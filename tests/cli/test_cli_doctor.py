"""The proof is worth something only if it fails where the chain is broken: here it is, one link at a time."""

from __future__ import annotations

from mmap import mmap
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from wasmetal.cli import app
from wasmetal.device import Buffer, Device, MemoryKind, open_device
from wasmetal.doctor import Report, prove
from wasmetal.memory import Aperture


class Broken:
    """The CPU device, but for what a subclass breaks."""

    def __init__(self) -> None:
        self.device = open_device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()


class CopiesInstead(Broken):
    """Wraps pages by copying them, as a device without host page import would."""

    def wrap(self, aperture: Aperture) -> Buffer:
        buffer = self.device.allocate(aperture.nbytes, MemoryKind.SHARED)
        self.device.write(buffer, 0, aperture.view())
        return buffer


class CopiesBesides(Broken):
    """Wraps pages, and copies them all the same."""

    def wrap(self, aperture: Aperture) -> Buffer:
        self.device.read(wrapped := self.device.wrap(aperture), 0, np.empty(wrapped.nbytes, np.uint8))
        return wrapped


class Hoards(Broken):
    """Wraps pages, and keeps as many more."""

    hoard: list[Any]

    def wrap(self, aperture: Aperture) -> Buffer:
        more = mmap(-1, aperture.nbytes)  # new pages, which malloc's need not be
        more.write(b"x" * aperture.nbytes)
        self.hoard = [*getattr(self, "hoard", []), more]
        return self.device.wrap(aperture)


class Miscounts(Broken):
    """Demands an alignment that the memory does not have."""

    @property
    def info(self) -> Any:
        from dataclasses import replace

        return replace(self.device.info, page_alignment=2**46)


def failing(report: Report) -> set[str]:
    return {link.name for link in report.links if not link.ok}


def test_every_link_holds(device: Device) -> None:
    report = prove(device)
    assert report.ok, [link for link in report.links if not link.ok]
    assert report.pointer_identity


@pytest.mark.parametrize(
    ("broken", "links"),
    [
        (CopiesInstead, {"addresses", "bytes", "growth", "memory", "matmul", "copies"}),
        (CopiesBesides, {"copies"}),
        (Hoards, {"memory"}),
        (Miscounts, {"pages"}),
    ],
)
def test_broken_links_are_named(broken: type[Broken], links: set[str]) -> None:
    with broken() as device:
        report = prove(device)
    assert not report.ok
    assert failing(report) == links
    assert report.pointer_identity == ("addresses" not in links)


def test_exit_code_and_name_of_a_broken_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmetal.device.open_device", lambda spec: CopiesBesides())
    shown = CliRunner().invoke(app, ["doctor", "--device", "cpu"])
    assert shown.exit_code == 1
    assert [line.split()[1] for line in shown.stdout.splitlines() if "FAILED" in line] == ["copies"]
