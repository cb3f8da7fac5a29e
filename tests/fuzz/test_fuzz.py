"""The kept cases of every target, and a short run with new ones; and that the driver finds what goes wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz import driver, target
from tests.fuzz.target import NAMES

ON_VULKAN = ("host_calls", "sessions", "batches")
"""Targets whose inputs reach the device."""


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_cases(name: str) -> None:
    files = target.kept(name)
    assert files, "a target has at least one kept case"
    result = driver.replay(name, "cpu", files)
    assert not result.found, report(result)
    assert result.cases == len(files)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "device"),
    [
        *[(name, "cpu") for name in NAMES],
        *[pytest.param(name, "vulkan", marks=pytest.mark.vulkan) for name in ON_VULKAN],
    ],
)
def test_new_cases(request: pytest.FixtureRequest, name: str, device: str) -> None:
    if device != "cpu":
        request.getfixturevalue(device)  # skips, or fails, if there is none
        assert not (kept := driver.replay(name, device, target.kept(name))).found, report(kept)
    result = driver.fuzz(name, device, seconds=5, seed=int(time.time()))
    assert not result.found, report(result)
    assert result.cases


def report(result: driver.Result) -> str:
    return "\n".join(f"{each.what} ({each.source})\n{each.trace}" for each in result.examples)


def test_a_case_is_the_same_for_the_same_seed() -> None:
    for name in NAMES:
        assert target.generate(name, 1, 2) == target.generate(name, 1, 2) != target.generate(name, 1, 3)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"raise", "ValueError at faulty.py"),
        (b"crash", "the process ended with status -11"),
        (b"hang", "still running after"),
        (b"swell", "MiB resident"),
    ],
)
def test_what_goes_wrong_is_found(tmp_path: Path, data: bytes, what: str) -> None:
    """And the cases before and after it still run."""
    files = write(tmp_path, [b"good", data, b"good"])
    result = driver.replay("faulty", "cpu", files)
    assert result.cases == 2
    (finding,) = result.examples
    assert what in finding.what
    assert (finding.data, finding.source) == (data, str(files[1]))
    saved = finding.save(tmp_path / "found")
    assert saved.read_bytes() == data
    assert f"--replay {saved}" in saved.with_name(saved.name + ".txt").read_text()


def test_of_one_kind_only_examples_are_kept(tmp_path: Path) -> None:
    result = driver.replay("faulty", "cpu", write(tmp_path, [b"raise"] * 4))
    assert list(result.found.values()) == [4]
    assert len(result.examples) == driver.EXAMPLES


def write(folder: Path, contents: list[bytes]) -> list[Path]:
    files = [folder / f"case{i}" for i in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files
