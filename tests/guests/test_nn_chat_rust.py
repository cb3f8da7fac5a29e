"""The same conversation from a guest in Rust, which knows nothing but wasi-nn.

Debian has a compiler and the target (rustc, libstd-rust-dev-wasm32, lld); so has rustup. WASMETAL_REQUIRE_RUST=1 has
the tests fail without them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.guests.test_nn_chat_guest import SYSTEM, nn_chat
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, NnModel, Program, load_model
from wasmetal.device import Device

SOURCE = Path(__file__).parents[1] / "nn" / "guests" / "chat.rs"
TARGETS = ("wasm32-wasip1", "wasm32-wasi")
"""The target's name, and the one that it had before 2024."""


def compiler() -> tuple[str, str] | None:
    """A compiler and its target, the first that is there."""
    for command in (shutil.which("rustc"), "/usr/bin/rustc"):
        for target in TARGETS if command and Path(command).exists() else ():
            arguments = [str(command), "--print", "target-libdir", "--target", target]
            found = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
            if found.returncode == 0 and Path(found.stdout.strip()).is_dir():
                return str(command), target
    return None


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    found = compiler()
    if found is None:
        missing = "no Rust for wasm32-wasip1 here: apt-get install rustc libstd-rust-dev-wasm32 lld"
        pytest.fail(missing) if os.environ.get("WASMETAL_REQUIRE_RUST") else pytest.skip(missing)
    command, target = found
    built = tmp_path_factory.mktemp("rust") / "chat.wasm"
    flags = ("--edition", "2021", "-O", "-C", "strip=symbols")
    subprocess.run([command, "--target", target, *flags, str(SOURCE), "-o", str(built)], check=True, timeout=150)
    return Program(built)


def rust_chat(program: Program, model: Any, *args: str, stdin: bytes, most: int = -1) -> bytes:
    out: list[bytes] = []
    grants = {"default": NnModel(model, {"temp": 0, "n-predict": most})}
    with Guest(program, nn=grants, args=[*args, SYSTEM], stdin=stdin, stdout=out.append) as guest:
        assert guest.run() == 0
    return b"".join(out)


def test_a_tiny_model(program: Program, tmp_path: Path, cpu: Device) -> None:
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf"), cpu) as model:
        expected = nn_chat(model, stdin=b"hello\nthere\n", most=8)
        assert rust_chat(program, model, stdin=b"hello\nthere\n", most=8) == expected
        assert rust_chat(program, model, "--single", stdin=b"hello\nthere\n", most=8) == expected


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_real_model(program: Program, smollm2: Path, cpu: Device) -> None:
    questions = b"What is the capital of France?\nAnd of Italy?\n"
    with load_model(smollm2, cpu) as model:
        expected = nn_chat(model, stdin=questions)
        assert b"Paris" in expected
        assert rust_chat(program, model, stdin=questions) == expected
        assert rust_chat(program, model, "--single", stdin=questions) == expected
