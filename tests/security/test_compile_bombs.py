"""Modules that would make the compiler take all memory, or minutes: they cost a worker process, not this one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.security.modules import HEAD, blocks, functions, loops, nested, section, wide_loops
from tests.security.peak import MIB, growth_below
from wasmetal import Guest, Program
from wasmetal.errors import GuestError
from wasmetal.host import compiler, sections

LIMITED = sys.platform == "linux"


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_NO_PROGRAM_CACHE", "1")


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """No test lets this process's memory grow much."""
    with growth_below(200 * MIB):
        yield


BOMBS = {
    "20,000 blocks and locals": lambda: blocks(20_000, 20_000),
    "5,000 loops and locals": lambda: loops(5_000, 5_000),
    "1,000,000 loops in loops": lambda: nested(1_000_000),
    "5 KiB of loops with 1,000 parameters": lambda: wide_loops(250, 1_000),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_runs_out_of_memory(bomb: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MEMORY", 128 * MIB)  # to be there sooner
    with pytest.raises(GuestError, match=r"^compiling guest needs more than [0-9]+ MiB of memory; if you trust it"):
        Program(bomb())
    with Guest(b'(module (func (export "f") (result i32) (i32.const 7)))') as guest:
        assert guest.call("f") == 7


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_ends_within_the_default_limits(bomb: Callable[[], bytes]) -> None:
    began = time.monotonic()
    with pytest.raises(GuestError, match=r"^compiling guest (needs more than|takes more than)"):
        Program(bomb())
    assert time.monotonic() - began < compiler.SECONDS + 60


SMALL = {
    "loops and locals": lambda: loops(120, 4_000),
    "blocks and locals": lambda: blocks(120, 4_000),
    "loops in loops": lambda: nested(680),
    "wide loops": lambda: wide_loops(280, 16),
    "functions": lambda: functions(680),
}


@pytest.mark.parametrize("code", SMALL.values(), ids=SMALL)
def test_what_is_compiled_here_takes_little(code: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_pool", None)
    used = time.process_time()
    with suppress(GuestError), growth_below(100 * MIB):  # GuestError: an import that does not exist
        Program(code())
    assert time.process_time() - used < 3


@pytest.mark.parametrize("code", [wide_loops(10, 17), loops(300, 4), functions(700), b"(module (type (array i8)))"])
def test_what_is_not_compiled_here(code: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_pool", None)
    with pytest.raises(AttributeError):
        Program(code)


def test_a_bomb_runs_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "SECONDS", 1.0)
    monkeypatch.setattr(compiler, "SECONDS_FOR_BYTE", 0.0)
    began = time.monotonic()
    with pytest.raises(GuestError, match=r"^compiling guest takes more than 1 seconds; if you trust it"):
        Guest(loops(3_000, 3_000))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "code", [functions(10**6), functions(1, exports=sections.MAX_ITEMS)], ids=["functions", "exports"]
)
def test_too_many_parts(code: bytes) -> None:
    with pytest.raises(GuestError, match=r"^guest has [0-9]+ functions, types, imports and so on; at most 131072"):
        Program(code)


def test_too_many_parts_as_text() -> None:
    with pytest.raises(GuestError, match=r"^guest has 131073 functions, types"):
        Program(b"(module (type (func))" + b"(func (type 0))" * sections.MAX_ITEMS + b")")


def test_a_module_that_is_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler, "MAX_MODULE", 20_000)
    with pytest.raises(GuestError, match=r"^guest has 20012 bytes; at most 20000 are supported$"):
        Program(HEAD + section(0, b"\0" * 20_000))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b'(module (func (export "f") (result i32)))', "guest: failed to compile: .*function"),
        (HEAD + b"\x01\xff\xff\xff\xff\xff", "guest: .*integer"),
        (HEAD + b"\x0a\x05", "guest: .*unexpected end"),
        (b"(module \x1b[31m", "guest: "),
    ],
)
def test_errors_are_the_same_wherever_a_module_is_compiled(code: bytes, message: str, large: bool) -> None:
    """Large modules are compiled in another process."""
    if large:
        code = code[:8] + section(0, b"\1a" + b"\0" * 20_000) + code[8:] if code[:1] == b"\0" else code + b" " * 20_000
    with pytest.raises(GuestError, match=message) as caught:
        Program(code)
    assert str(caught.value).isprintable()


def test_a_large_module_runs_as_it_would_if_trusted() -> None:
    text = "".join(
        f'(func (export "f{i}") (param i32) (result i32) (i32.mul (local.get 0) (i32.const {i})))' for i in range(2000)
    )
    for trusted in (False, True):
        with Guest(f"(module {text})".encode(), trusted=trusted) as guest:
            assert guest.call("f1999", 3) == 5997


def test_a_trusted_module_is_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MEMORY", 0)
    monkeypatch.setattr(compiler, "MEMORY_FOR_BYTE", 0)
    Program(functions(3_000), trusted=True)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_compiling() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tests.security.modules import loops\n"
        "from wasmetal import Program\n"
        "code = loops(4000, 4000)\n"
        "print('compiling', flush=True)\n"
        "Program(code)\n"
    )
    command = [sys.executable, "-c", script, *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"compiling\n"
        time.sleep(1)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert time.monotonic() - began < 5
        assert process.stderr
        assert b"KeyboardInterrupt" in process.stderr.read()
