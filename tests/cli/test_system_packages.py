"""``scripts/system_packages.py``: installs what it may, names what it may not, and lets the rest go on."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "system_packages.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("system_packages", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lacking(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """A machine without two of the packages; taking a name out of the set installs it."""
    absent = {"wabt", "libvulkan1"}

    def package(name: str) -> Any:
        return script.Package(name, lambda: name not in absent, f"no {name}")

    monkeypatch.setattr(script, "TEST", tuple(map(package, ("libvulkan1", "spirv-tools", "wabt"))))
    monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}")
    return absent


def test_without_root_it_says_what_is_missing_and_what_is_lost(
    script: ModuleType, lacking: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: pytest.fail("not allowed to install"))
    script.main("test")
    assert capsys.readouterr().err.splitlines() == [
        "missing: libvulkan1 (no libvulkan1); install it with your package manager",
        "missing: wabt (no wabt); install it with your package manager",
    ]


def test_as_root_it_installs_what_is_missing_and_nothing_else(
    script: ModuleType, lacking: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def apt_get(command: list[str], **_: Any) -> Any:
        ran.append(command)
        lacking.difference_update(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(script.os, "geteuid", lambda: 0)
    monkeypatch.setattr(script.subprocess, "run", apt_get)
    script.main("test")
    assert [command[2] for command in ran] == ["update", "install"]
    assert ran[1][-2:] == ["libvulkan1", "wabt"]
    assert capsys.readouterr().err == ""


def test_where_installing_fails_it_goes_on(
    script: ModuleType, lacking: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: 0)
    failed = subprocess.CompletedProcess([], 100, "", "E: no network")
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: failed)
    script.main("test")
    errors = capsys.readouterr().err
    assert "E: no network" in errors
    assert "missing: wabt (no wabt)" in errors


def test_a_package_that_is_not_to_be_had_keeps_no_other_away(
    script: ModuleType, lacking: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def apt_get(command: list[str], **_: Any) -> Any:
        if "libvulkan1" in command:
            return subprocess.CompletedProcess(command, 100, "", "E: no candidate")
        lacking.difference_update(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(script.os, "geteuid", lambda: 0)
    monkeypatch.setattr(script.subprocess, "run", apt_get)
    script.main("test")
    assert lacking == {"libvulkan1"}
    assert "missing: libvulkan1" in capsys.readouterr().err
