"""How models are granted for wasi-nn: from Python, on the command line, and to a guest in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import wasmetal
from tests.models.tiny import write_tiny_llama
from tests.nn.models import add
from tests.nn.probe import OK, NnProbe, program
from wasmetal import Guest, Limits, load_model
from wasmetal.device import Device
from wasmetal.errors import GuestError, ModelError
from wasmetal.host.nn.grants import NnModel, parse, parse_preload
from wasmetal.nn.errors import NnErrno

NN_CHAT = Path(__file__).parents[2] / "guests" / "nn_chat.wasm"


@pytest.mark.parametrize(
    ("text", "name", "path", "options"),
    [
        ("a=b.gguf", "a", "b.gguf", {}),
        ("a=smollm2:135m", "a", "smollm2:135m", {}),
        ("a=smollm2:135m:temp=0.5", "a", "smollm2:135m", {"temp": 0.5}),
        ("a=C:x=y/b.gguf", "a", "C", {"x": "y/b.gguf"}),
        (
            "a=/x/b.gguf:n-predict=3:stream-stdout=true:reverse-prompt=You: ",
            "a",
            "/x/b.gguf",
            {"n-predict": 3, "stream-stdout": True, "reverse-prompt": "You: "},
        ),
    ],
)
def test_what_the_command_line_says(text: str, name: str, path: str, options: dict[str, Any]) -> None:
    assert parse(text) == (name, NnModel(path, options))


@pytest.mark.parametrize(
    "text", ["default:GGML:AUTO:m/b.gguf", "default:ggml:CPU:m/b.gguf", "default:ONNX:GPU:m/b.gguf"]
)
def test_what_wasmedges_says(text: str) -> None:
    assert parse_preload(text) == ("default", NnModel("m/b.gguf"))


@pytest.mark.parametrize("text", ["", "a", "a=", "=b", "=b:x=1"])
def test_forms_that_are_wrong(text: str) -> None:
    with pytest.raises(GuestError, match="has not the form NAME=PATH"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a:GGML:AUTO", "has not the form NAME:ENCODING:TARGET:PATH"),
        ("a:PyTorch:CPU:b", "'PyTorch' in 'a:PyTorch:CPU:b' is not supported; supported: ggml, onnx"),
        ("a:GGML:LPU:b", "'LPU' in 'a:GGML:LPU:b' is not supported; supported: cpu, gpu"),
    ],
)
def test_preloads_that_are_wrong(text: str, line: str) -> None:
    with pytest.raises(GuestError, match=line):
        parse_preload(text)


def test_what_cannot_be_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMETAL_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="wasmetal pull smollm2:135m"):
        NnProbe(nn={"m": "smollm2:135m"})
    (tmp_path / "m.onnx").write_bytes(add())
    monkeypatch.setattr("wasmetal.host.nn.grants.find_spec", lambda name: None)
    with pytest.raises(GuestError, match=r"pip install 'wasmetal\[onnx\]'"):
        NnProbe(nn={"m": tmp_path / "m.onnx"})
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    with pytest.raises(GuestError, match=r"pip install 'wasmetal\[tflite\]'"):
        NnProbe(nn={"m": tmp_path / "m.tflite"})


def test_a_guest_without_models_needs_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(add())
    monkeypatch.setenv("WASMETAL_DEVICE", "nowhere")
    with NnProbe(nn={"m": tmp_path / "m.onnx", "none": tmp_path / "none"}) as probe:
        probe.context()
        assert probe.load_by_name(probe.TEXT, probe.put(probe.TEXT, b"none"), probe.OUT) == NnErrno.MODEL_NOT_FOUND


def test_a_guest_in_a_process_of_its_own(tmp_path: Path, cpu: Device) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    (tmp_path / "m.onnx").write_bytes(add())
    nn = {"default": NnModel(path, {"temp": 0, "n-predict": 5}), "m": tmp_path / "m.onnx"}
    texts = []
    for isolation in (None, "process"):
        out: list[bytes] = []
        limits = Limits(memory_bytes=1 << 26, device_bytes=1 << 26)
        grants: dict[str, Any] = {"device": "cpu", "nn": nn, "args": ["-p", "hi"], "stdout": out.append}
        with Guest(NN_CHAT, isolation=isolation, limits=limits, **grants) as guest:
            assert guest.run() == 0
        texts.append(b"".join(out))
    assert texts[0] == texts[1] != b""
    with Guest(program(), isolation="process", nn={"m": tmp_path / "m.onnx"}) as guest:
        guest.write(0, b"m")
        assert guest.call("load_by_name", 0, 1, 64) == OK
        assert guest.call("init_execution_context", int.from_bytes(guest.read(64, 4), "little", signed=True), 64) == OK
        context = int.from_bytes(guest.read(64, 4), "little", signed=True)
        guest.write(4096, np.array([4116, 1, 1, 8192, 12, 3], np.uint32).tobytes())
        assert guest.call("set_input", context, 1, 4096) == OK
    with load_model(path, cpu) as model, pytest.raises(GuestError, match="loads models for itself"):
        Guest(NN_CHAT, isolation="process", nn={"default": NnModel(model)})


def test_the_command_line(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    options = "--options", '{"temp": 0, "n-predict": 5}'
    one = wasmetal("run", "--device", "cpu", "--nn", f"m={path}:temp=0:n-predict=5", NN_CHAT, "--model", "m", "-p", "x")
    preload = "--nn-preload", f"default:GGML:AUTO:{path}"
    other = wasmetal("run", "--device", "cpu", *preload, NN_CHAT, "-p", "x", *options)
    assert (one.returncode, one.stderr) == (other.returncode, other.stderr) == (0, "")
    assert one.stdout == other.stdout
    wrong = wasmetal("run", "--nn", "m", NN_CHAT)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "NAME=PATH" in wrong.stderr
