"""``wasmetal run``: what a guest is given, and what comes out."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli import wat
from tests.cli.command import SCRIPT, wasmetal
from wasmetal.host.errno import WasiErrno


@pytest.fixture
def guest(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "guest.wat"
    path.write_text(request.param)
    return path


def given(text: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("guest", [text], indirect=True, ids=[""])


@given(wat.EXIT)
def test_exit_code_is_the_guests(guest: Path) -> None:
    done = wasmetal("run", guest)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


@given(wat.TRAP)
def test_trap_is_one_line(guest: Path) -> None:
    done = wasmetal("run", guest)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "stumble" in done.stderr
    assert "unreachable" in done.stderr


@given(wat.strings("args"))
def test_everything_after_the_guest_is_the_guests(guest: Path) -> None:
    done = wasmetal("run", guest, "--help", "--device", "nowhere", "-p", "--", "x")
    assert done.stdout.split("\0") == ["guest.wat", "--help", "--device", "nowhere", "-p", "--", "x", ""]


@given(wat.strings("environ"))
def test_environment_is_what_is_granted(guest: Path) -> None:
    done = wasmetal("run", "--env", "A=1", "--env", "B=x=y", guest, SECRET="hidden")
    assert done.stdout.split("\0") == ["A=1", "B=x=y", ""]


@given(wat.CAT)
def test_standard_input_and_output(guest: Path) -> None:
    text = "".join(f"line {number} é\n" for number in range(5000))
    assert wasmetal("run", guest, stdin=text).stdout == text


def test_an_isolated_guest_is_no_different(tmp_path: Path) -> None:
    texts = {"exit": wat.EXIT, "trap": wat.TRAP, "cat": wat.CAT}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        results = [wasmetal("run", *options, tmp_path / name, stdin="é\n" * 5000) for options in ([], ["--isolate"])]
        apart, here = ((done.returncode, done.stdout, done.stderr) for done in results)
        assert apart == here


@given(wat.PREOPENED)
def test_directories_are_what_is_granted(guest: Path, tmp_path: Path) -> None:
    assert wasmetal("run", guest).returncode == 1
    assert wasmetal("run", "--dir", f"{tmp_path}::/data", guest).stdout == "/data"
    assert wasmetal("run", "--dir", f"/data:{tmp_path}", guest).stdout == "/data"  # as WasmEdge has it


@given(wat.CREATE)
def test_what_a_guest_may_do_in_a_directory(guest: Path, tmp_path: Path) -> None:
    directory = tmp_path / "granted"
    directory.mkdir()
    assert wasmetal("run", "--dir", f"{directory}::/data:ro", guest).returncode == WasiErrno.ROFS
    assert wasmetal("run", "--dir", f"/data:{directory}:readonly", guest).returncode == WasiErrno.ROFS
    assert list(directory.iterdir()) == []
    assert wasmetal("run", "--dir", f"{directory}::/data", "--disk-limit", "999B", guest).returncode == WasiErrno.DQUOT
    assert (directory / "new").stat().st_size == 0
    (directory / "new").unlink()
    assert wasmetal("run", "--dir", f"{directory}::/data", "--disk-limit", "1KB", guest).returncode == 0
    assert (directory / "new").stat().st_size == 1000


@given(wat.GROW)
def test_memory_limit(guest: Path) -> None:
    assert wasmetal("run", guest).returncode == 0
    assert wasmetal("run", "--memory-limit", "16MiB", guest).returncode == 1


@given(wat.SPIN)
def test_timeout_names_the_limit(guest: Path) -> None:
    done = wasmetal("run", "--timeout", "0.3", guest)
    assert done.returncode == 2
    assert done.stderr == "wasmetal: limit reached: 0.3 seconds of wall time\n"


@given(wat.FLOOD)
def test_interrupt_is_quiet(guest: Path, interruptible: None) -> None:
    running = subprocess.Popen([SCRIPT, "run", guest], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.read(10)  # the guest runs
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[1] == b""
    assert running.returncode == 130


@given(wat.CAT)
def test_interrupt_while_the_guest_waits_for_input(guest: Path, interruptible: None) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([SCRIPT, "run", guest], bufsize=0, **pipes) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdin.write(b"line\n")
        assert running.stdout.read(5) == b"line\n"  # and now it waits for the next
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        assert running.stderr.read() == b""


@given(wat.FLOOD)
def test_reader_that_leaves_ends_the_guest_quietly(guest: Path) -> None:
    running = subprocess.Popen([SCRIPT, "run", guest], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.read(10)
    running.stdout.close()
    running.stdout = None
    assert running.communicate(timeout=60)[1] == b""
    assert running.returncode == 1
