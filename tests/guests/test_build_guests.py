from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # the first time, the compiler builds the C library too
GUESTS = Path(__file__).parents[2] / "guests"


def build(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, folder / "guests" / "build.py", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources in another folder, whose name must not matter."""
    import shutil

    folder = tmp_path_factory.mktemp("another place with a long name")
    for name in ("guests", "src/wasmetal/sdk"):
        shutil.copytree(GUESTS.parent / name, folder / name)
    return folder


def test_the_committed_guests_are_what_their_sources_give(elsewhere: Path) -> None:
    result = build(elsewhere, "--check")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_stale_guest_is_noticed(elsewhere: Path) -> None:
    path = elsewhere / "guests" / "matmul.wasm"
    code = path.read_bytes()
    path.write_bytes(code[:-1] + bytes([code[-1] ^ 1]))
    result = build(elsewhere, "--check", "matmul", "sampler")
    assert result.returncode == 1
    assert "matmul.wasm" in result.stderr
    assert "sampler.wasm" not in result.stderr
    assert build(elsewhere, "matmul").returncode == 0
    assert path.read_bytes() == code


def test_guests_hold_no_path_of_the_machine_that_built_them() -> None:
    for guest in GUESTS.glob("*.wasm"):
        code = guest.read_bytes()
        for trace in (str(GUESTS), str(Path.home()), "/tmp", "ziglang", ".zig-cache"):
            assert trace.encode() not in code, (guest.name, trace)
