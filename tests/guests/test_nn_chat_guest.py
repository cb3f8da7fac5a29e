"""The guest that chats through wasi-nn says what ``chat`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, NnModel, load_model
from wasmetal.device import Device

GUESTS = Path(__file__).parents[2] / "guests"
SYSTEM = "You are terse."


def run(guest: str, *args: str, stdin: bytes = b"", **grants: Any) -> bytes:
    out: list[bytes] = []
    with Guest(GUESTS / f"{guest}.wasm", args=args, stdin=stdin, stdout=out.append, **grants) as running:
        assert running.run() == 0
        assert running.counters.bytes_copied == 0
    return b"".join(out)


def nn_chat(model: Any, *args: str, stdin: bytes = b"", most: int = -1) -> bytes:
    grants = {"default": NnModel(model, {"temp": 0, "n-predict": most})}
    return run("nn_chat", "--system", SYSTEM, *args, stdin=stdin, nn=grants)


def chat(model: Any, *args: str, stdin: bytes = b"") -> bytes:
    return run("chat", "--greedy", "--system", SYSTEM, *args, stdin=stdin, models={"default": model})


def test_a_tiny_model(tmp_path: Path, cpu: Device) -> None:
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf"), cpu) as model:
        expected = chat(model, "-p", "hello", "--max-tokens", "8")
        whole = nn_chat(model, "-p", "hello", most=8)
        assert whole.rstrip(b"\n") == expected.rstrip(b"\n")
        assert nn_chat(model, "-p", "hello", "--single", most=8) == whole
        assert nn_chat(model, "-p", "hello", "--options", '{"n-predict": 3}') == nn_chat(model, "-p", "hello", most=3)


def test_what_cannot_be_loaded(cpu: Device) -> None:
    errors: list[bytes] = []
    with Guest(GUESTS / "nn_chat.wasm", device=cpu, args=["-p", "x"], stderr=errors.append) as guest:
        assert guest.run() == 1
    assert b"".join(errors) == b"nn_chat: load: error 8 of wasi-nn\n"


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_real_model(smollm2: Path, cpu: Device) -> None:
    questions = b"What is the capital of France?\nAnd of Italy?\n"
    with load_model(smollm2, cpu) as model:
        expected = chat(model, stdin=questions)
        assert b"Paris" in expected
        assert nn_chat(model, stdin=questions) == expected
        assert nn_chat(model, "--single", stdin=questions) == expected
