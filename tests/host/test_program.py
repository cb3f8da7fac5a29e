"""Programs: compiled once, shared by guests and threads, and kept on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from wasmetal import Guest, Limits, Program
from wasmetal.errors import GuestError, GuestTrapError, LimitError
from wasmetal.host import program as program_module
from wasmetal.host import program_cache
from wasmetal.host.compiler import compile_untrusted

COUNTER = b"""(module (memory (export "memory") 1) (global $n (mut i32) (i32.const 0))
    (func (export "next") (result i32)
        (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))
    (func (export "poke") (param i32) (i32.store8 (i32.const 0) (local.get 0)))
    (func (export "peek") (result i32) (i32.load8_u (i32.const 0))))"""


def large(tag: int = 0) -> bytes:
    """A module that is worth a file; ``tag`` tells one from another."""
    functions = b"".join(b'(func (export "f%d") (result i32) (i32.const %d))' % (i, i + tag) for i in range(120))
    return b"(module " + functions + b")"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs are kept; it is not made yet."""
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WASMETAL_NO_PROGRAM_CACHE", raising=False)
    return tmp_path / "home" / "programs"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was compiled, and not loaded."""
    codes: list[bytes] = []

    def watched(engine: wasmtime.Engine, name: str, code: bytes) -> wasmtime.Module:
        codes.append(code)
        return compile_untrusted(engine, name, code)

    monkeypatch.setattr(program_module, "compile_untrusted", watched)
    return codes


# ---- One program, many guests


def test_guests_of_a_program_share_nothing_but_its_code() -> None:
    program = Program(COUNTER)
    with Guest(program) as one, Guest(program) as other:
        assert [one.call("next") for _ in range(3)] == [1, 2, 3]
        assert other.call("next") == 1
        one.call("poke", 7)
        assert (one.call("peek"), other.call("peek")) == (7, 0)
    with Guest(program) as late:
        assert late.call("next") == 1


def test_a_program_is_compiled_once(folder: Path, compiled: list[bytes]) -> None:
    program = Program(COUNTER)
    for _ in range(3):
        Guest(program).close()
    assert compiled == [COUNTER]


def test_threads_share_a_program() -> None:
    program, results = Program(COUNTER), []

    def work() -> None:
        for _ in range(20):
            with Guest(program) as guest:
                results.append(guest.call("next"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1] * 80


def test_limits_hold_for_each_guest() -> None:
    program = Program(b"(module (memory 3))")
    with pytest.raises(LimitError, match="of linear memory"):
        Guest(program, limits=Limits(memory_bytes=65536))
    Guest(program).close()


def test_a_program_from_a_path_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "counter.wat"
    path.write_bytes(COUNTER)
    assert Program(path).name == "counter.wat"
    assert Program(COUNTER).name == "guest"


@pytest.mark.parametrize(
    ("code", "message"),
    [(b"", "not a WebAssembly module"), (b"(module (func)", "expected"), (b'(module (import "e" "f" (func)))', "e::f")],
)
def test_a_program_that_cannot_be(code: bytes, message: str) -> None:
    with pytest.raises(GuestError, match=message):
        Program(code)


def test_a_start_function_runs_for_each_guest() -> None:
    program = Program(b"(module (func $f unreachable) (start $f))")
    for _ in range(2):
        with pytest.raises(GuestTrapError):
            Guest(program)


def test_addresses_of_both_widths() -> None:
    for index in ("i32", "i64"):
        program = Program(f'(module (memory (export "memory") {index} 1))'.encode())
        assert program.memory64 == (index == "i64")


# ---- On disk


def test_what_was_compiled_is_loaded(folder: Path, compiled: list[bytes]) -> None:
    for _ in range(2):
        with Guest(large()) as guest:
            assert guest.call("f7") == 7
    assert compiled == [large()]
    [file] = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


def test_another_process_loads_it(folder: Path) -> None:
    Program(large())
    script = """
import sys
import wasmtime
import wasmetal
def refuse(*_): raise AssertionError("compiled")
wasmtime.Module.__init__ = refuse
with wasmetal.Guest(sys.stdin.buffer.read()) as guest:
    print(guest.call("f3"))
"""
    ran = subprocess.run([sys.executable, "-c", script], input=large(), capture_output=True, check=False)
    assert (ran.stdout, ran.stderr) == (b"3\n", b"")


def test_another_module_is_another_file(folder: Path) -> None:
    for tag in (0, 1):
        with Guest(large(tag)) as guest:
            assert guest.call("f7") == 7 + tag
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [("version", lambda: "0.0"), ("SETTINGS", {"wasm_threads": True}), ("_processor", lambda: "another")],
    ids=["version", "settings", "processor"],
)
def test_code_for_another_engine_is_not_taken(
    change: tuple[str, Any], folder: Path, compiled: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    Program(large())
    monkeypatch.setattr(program_cache, *change)
    Program(large())
    assert len(compiled) == len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"\0" + data[1:]])
def test_a_damaged_file_is_compiled_again(damage: Any, folder: Path, compiled: list[bytes]) -> None:
    Program(large())
    [file] = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with Guest(large()) as guest:
        assert guest.call("f7") == 7
    assert compiled == [large()] * 2
    assert len(file.read_bytes()) == len(whole)
    Program(large())
    assert len(compiled) == 2


def test_a_file_that_wasmtime_refuses_is_compiled_again(folder: Path, compiled: list[bytes]) -> None:
    Program(large())
    [file] = folder.iterdir()
    program_cache._write_private(file, b"\x7fELF but no program")
    Program(large())
    assert len(compiled) == 2


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_can_write_is_not_loaded(what: str, folder: Path, compiled: list[bytes]) -> None:
    Program(large())
    [file] = folder.iterdir()
    (file if what == "file" else folder).chmod(0o722)
    Program(large())
    assert len(compiled) == 2


def test_what_others_own_is_not_loaded(folder: Path, compiled: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    Program(large())
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    Program(large())
    assert len(compiled) == 2


def test_a_link_is_not_followed(folder: Path, compiled: list[bytes], tmp_path: Path) -> None:
    Program(large())
    [file] = folder.iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    Program(large())
    assert len(compiled) == 2
    assert not file.is_symlink()  # replaced


def test_a_folder_that_cannot_be_made_costs_nothing_else(
    tmp_path: Path, compiled: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path / "file"))
    for _ in range(2):
        Guest(large()).close()
    assert len(compiled) == 2


def test_it_can_be_switched_off(folder: Path, compiled: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_NO_PROGRAM_CACHE", "1")
    for _ in range(2):
        Program(large())
    assert len(compiled) == 2
    assert not folder.exists()


def test_small_modules_make_no_file(folder: Path) -> None:
    Program(COUNTER)
    assert not folder.exists()


def test_the_folder_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used least recently goes."""
    Program(large(0))
    [first] = folder.iterdir()
    monkeypatch.setattr(program_cache, "MAX_BYTES", 2 * first.stat().st_size + 1000)
    Program(large(1))
    [second] = set(folder.iterdir()) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    Program(large(0))  # used
    Program(large(3))
    left = set(folder.iterdir())
    assert first in left
    assert second not in left
    assert len(left) == 2
