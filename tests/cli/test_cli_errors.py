"""Whatever a user gets wrong is answered in one line that says what to do, with exit code 2 and nothing on stdout."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from wasmetal.cli import app


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text("no module")
    (tmp_path / "cut.wasm").write_bytes(b"\0asm\1\0\0\0\1")
    (tmp_path / "component.wasm").write_bytes(b"\0asm\x0d\0\1\0")
    (tmp_path / "ok.wat").write_text('(module (memory (export "memory") 1) (func (export "_start")))')
    (tmp_path / "imports.wat").write_text('(module (import "nowhere" "nothing" (func)) (func (export "_start")))')
    (tmp_path / "model.gguf").write_bytes(b"GGUX" + bytes(100))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("run {files}/missing.wasm", "missing.wasm"),
        ("run {files}/text", "not a WebAssembly module"),
        ("run {files}/cut.wasm", "cut.wasm"),
        ("run {files}/component.wasm", "component"),
        ("run {files}/imports.wat", "nothing"),
        ("run --device nowhere {files}/ok.wat", "nowhere"),
        ("run --device vulkan:77 {files}/ok.wat", "77"),
        ("run --memory-limit 12parsecs {files}/ok.wat", "12parsecs"),
        ("run --memory-limit -1 {files}/ok.wat", "-1"),
        ("run --device-memory-limit 1TiZ {files}/ok.wat", "1TiZ"),
        ("run --memory-limit 1KiB {files}/ok.wat", "1024"),
        ("run --env NAME {files}/ok.wat", "KEY=VALUE"),
        ("run --model NAME {files}/ok.wat", "NAME=MODEL"),
        ("run --model m=nosuch {files}/ok.wat", "nosuch"),
        ("run --model m={files}/model.gguf {files}/ok.wat", "model.gguf"),
        ("run --dir {files} {files}/ok.wat", "HOST::GUEST"),
        ("run --dir {files}/missing::/x {files}/ok.wat", "missing"),
        ("chat nosuch -p x", "nosuch"),
        ("chat smollm2:135m -p x", "wasmetal pull smollm2:135m"),
        ("chat {files}/model.gguf -p x", "model.gguf"),
        ("pull nosuch", "smollm2:135m"),
        ("pull hf:nosuch", "hf:ORG/REPO"),
        ("pull http://127.0.0.1:1/model.gguf", "refused"),
        ("pull http://127.0.0.1:1/model", "name.gguf"),
        ("chat hf:org/repo:Q8_0 -p x", "wasmetal pull hf:org/repo:Q8_0"),
        ("models show {files}/model.gguf", "model.gguf"),
        ("models rm nosuch", "nosuch"),
        ("models verify nosuch", "models here: none"),
        ("doctor --device nowhere", "nowhere"),
        ("bench zerocopy --device nowhere", "nowhere"),
        ("bench zerocopy --largest big", "big"),
        ("bench dispatch --device cpu:1", "cpu:1"),
    ],
)
def test_one_line(arguments: str, names: str, files: Path) -> None:
    done = CliRunner().invoke(app, arguments.format(files=files).split(), env={"WASMETAL_HOME": str(files / "home")})
    assert done.stderr.startswith("wasmetal: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert names in done.stderr
    assert (done.exit_code, done.stdout) == (2, "")
