"""Components that import ``wasi:nn``."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wasmtime

from tests.cli.command import wasmetal
from tests.models.tiny import write_tiny_llama
from tests.nn.models import add, endless, identity
from wasmetal import Dir, Guest, Limits, NnModel, Program
from wasmetal.device import Device
from wasmetal.errors import GuestError, LimitError
from wasmetal.host.component.nn import Resource
from wasmetal.nn.errors import NnErrno

pytest.importorskip("onnxruntime")
TYPES = ("FP16", "FP32", "FP64", "BF16", "U8", "I32", "I64")
WAT = Path(__file__).with_name("component.wat").read_text()


def component(data: bytes, dims: tuple[int, ...], kind: str = "FP32", **others: Any) -> bytes:
    """The component of component.wat, which runs a model on one input."""
    return filled(WAT, data, dims, kind, **others)


def filled(
    text: str, data: bytes, dims: tuple[int, ...], kind: str, name: str = "m", input: str = "x", **others: int
) -> bytes:
    """The component of a text, with these in place of the names in braces."""

    def escaped(content: bytes) -> str:
        return "".join(f"\\{byte:02x}" for byte in content)

    values: dict[str, Any] = {
        "NAME": name,
        "NAME_SIZE": len(name),
        "INPUT": input,
        "INPUT_SIZE": len(input),
        "DIMS": escaped(struct.pack(f"<{len(dims)}I", *dims)),
        "RANK": len(dims),
        "TYPE": TYPES.index(kind),
        "DATA": escaped(data),
        "SIZE": len(data),
        "ROUNDS": 1,
        **others,
    }
    for each, value in values.items():
        text = text.replace(f"{{{each}}}", str(value))
    return bytes(wasmtime.wat2wasm(text))


def run(code: bytes, model: Path | None, **grants: Any) -> tuple[int, bytes, Guest]:
    out: list[bytes] = []
    with Guest(code, nn={"m": model} if model else {}, stdout=out.append, **grants) as guest:
        exit_code = guest.run()
        return exit_code, b"".join(out), guest


def described(name: str, array: np.ndarray[Any, Any], kind: str = "FP32") -> bytes:
    """What the component writes of an output."""
    dims = struct.pack(f"<{array.ndim}I", *array.shape)
    return name.encode() + bytes([TYPES.index(kind)]) + dims + array.tobytes()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(identity(np.float32, (2, 3)))
    return path


IMAGE = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("input", ["x", "0"])
def test_a_model_by_name(model: Path, input: str) -> None:
    code, out, guest = run(component(IMAGE.tobytes(), (2, 3), input=input, ROUNDS=3), model)
    assert code == 0
    assert out == 3 * described("y", IMAGE)
    assert guest.counters.bytes_copied == 3 * 4 * IMAGE.nbytes  # into a tensor, an input, a tensor, the guest
    assert guest._account.device_bytes == 0  # everything was dropped


@pytest.mark.parametrize("kind", ["FP16", "FP64", "U8", "I32", "I64"])
def test_each_type(tmp_path: Path, kind: str) -> None:
    dtypes = {"FP16": np.float16, "FP64": np.float64, "U8": np.uint8, "I32": np.int32, "I64": np.int64}
    values = np.array([[1, 2], [3, 250]], dtypes[kind])
    (tmp_path / "m.onnx").write_bytes(identity(dtypes[kind]))
    code, out, _ = run(component(values.tobytes(), (2, 2), kind), tmp_path / "m.onnx")
    assert (code, out) == (0, described("y", values, kind))


def refused(code: bytes, model: Path | None, **grants: Any) -> tuple[int, str]:
    """The error's code, and what it says."""
    exit_code, out, _ = run(code, model, **grants)
    assert exit_code == 1
    return out[0], out[1:].decode()


def test_errors(model: Path, tmp_path: Path) -> None:
    good = IMAGE.tobytes()
    argument, unsupported, missing = 0, 4, 6
    assert refused(component(good, (2, 3), name="other"), model) == (missing, NnErrno.NOT_FOUND.doc)
    gone = refused(component(good, (2, 3)), tmp_path / "gone.onnx")
    assert gone == (missing, NnErrno.MODEL_NOT_FOUND.doc)  # without the host's path
    for wrong in (
        component(good, (2, 4)),
        component(good, (3, 2)),
        component(good, (2**32 - 1,) * 3),
        component(good, (2, 3), "I32"),
        component(good, (2, 3), input="z"),
        component(good, (2, 3), input="1"),
    ):
        assert refused(wrong, model)[0] == argument
    assert refused(component(good[:12], (2, 3), "BF16"), model)[0] == unsupported
    model.write_bytes(b"no model")
    assert refused(component(good, (2, 3)), model)[0] == 1
    (tmp_path / "two.onnx").write_bytes(add((2, 3)))
    assert refused(component(good, (2, 3), input="a"), tmp_path / "two.onnx")[0] == argument


def test_limits(model: Path, tmp_path: Path) -> None:
    code = component(IMAGE.tobytes(), (2, 3))
    with pytest.raises(LimitError, match="device memory"):
        run(code, model, limits=Limits(device_bytes=2 * model.stat().st_size + 20))
    for handles in range(2):
        with pytest.raises(LimitError, match="handles"):
            run(code, model, limits=Limits(handles=handles))
    assert run(code, model, limits=Limits(handles=2))[0] == 0
    with pytest.raises(LimitError, match="memory"):
        run(code, model, limits=Limits(memory_bytes=65536))
    with pytest.raises(LimitError, match="65 dimensions"):
        run(component(b"", (2,) * 65), model)
    (tmp_path / "endless.onnx").write_bytes(endless())
    with pytest.raises(LimitError, match="wall"):
        run(component(b"\0\0\0\0", (1,)), tmp_path / "endless.onnx", limits=Limits(wall_seconds=0.5))


def test_a_list_that_is_too_long(model: Path) -> None:
    """Wasmtime's own bound, which the documentation names."""
    text = WAT.replace('(memory (export "memory") 4)', '(memory (export "memory") 64)')
    with pytest.raises(GuestError):
        run(filled(text, b"", (1,), "U8", SIZE=3 << 20), model)


def test_a_language_model(tmp_path: Path, cpu: Device) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    grant: Any = NnModel(path, {"temp": 0, "n-predict": 4})
    code, out, _ = run(component(b"hello", (5,), "U8", input="prompt"), grant, device=cpu)
    assert code == 0
    assert out.startswith(b"text\x04")
    assert b'"output_tokens": 4' in out.partition(b"metadata\x04")[2]


def test_what_a_component_may_not(model: Path, tmp_path: Path) -> None:
    code = component(IMAGE.tobytes(), (2, 3))
    with pytest.raises(GuestError, match="reading only"):
        run(code, model, dirs={"/data": tmp_path})
    assert run(code, model, dirs={"/data": Dir(tmp_path, read_only=True)}, stdin=b"some")[0] == 0
    with pytest.raises(GuestError, match="cannot be a function"):
        run(code, model, stdin=lambda most: b"")
    with pytest.raises(GuestError, match="no directory"):
        run(code, model, dirs={"/data": Dir(tmp_path / "gone", read_only=True)})
    with Guest(code, nn={"m": model}) as guest, pytest.raises(GuestError, match="a component"):
        guest.call("run")
    with pytest.raises(GuestError, match="wasi:cli/run"):
        Guest(bytes(wasmtime.wat2wasm("(component)")))
    with pytest.raises(GuestError, match="2024-06-25"):  # another version of wasi:nn
        Guest(filled(WAT.replace("2024-10-28", "2024-06-25"), b"", (1,), "U8"))
    with pytest.raises(GuestError, match="convert it to binary"):
        Guest(b"(component)")


def test_the_command_line(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "guest.wasm"
    path.write_bytes(component(b"\0" * 24, (2, 3)))
    for options in ([], ["--isolate"], ["--trusted"]):
        found = wasmetal("run", "--nn", f"m={model}", *options, path)
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout == "y\1\2\0\0\0\3\0\0\0" + 24 * "\0"
    assert wasmetal("run", path).returncode == 1


def test_several_at_once(model: Path) -> None:
    """What the package wasmtime keeps for all threads must not mix up their results."""
    program, wrong = Program(component(IMAGE.tobytes(), (2, 3), ROUNDS=20)), list[object]()

    def use() -> None:
        try:
            for _ in range(3):
                with Guest(program, nn={"m": model}) as guest:
                    assert guest.run() == 0
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SLEEP = """
(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $outer))
    (export "pollable" (type $pollable (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
  (core func $wait (canon lower (func $clock "subscribe-duration")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core module $main
    (import "" "wait" (func $wait (param i64) (result i32)))
    (import "" "block" (func $block (param i32)))
    (func (export "run") (result i32)
      (call $block (call $wait (i64.const {NANOSECONDS})))
      (loop $again (br $again))
      (i32.const 0)))
  (core instance $main (instantiate $main
    (with "" (instance (export "wait" (func $wait)) (export "block" (func $block))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
"""


@pytest.mark.parametrize(("seconds", "isolation"), [(0.5, None), (1000, "process")])
def test_one_that_sleeps(seconds: float, isolation: Any) -> None:
    """It is stopped once it has waited; in a process of its own, at the limit."""
    code = bytes(wasmtime.wat2wasm(SLEEP.replace("{NANOSECONDS}", str(int(1e9 * seconds)))))
    with Guest(code, isolation=isolation, limits=Limits(wall_seconds=0.2)) as guest, pytest.raises(LimitError):
        guest.run()


def test_the_numbers_of_resources_differ() -> None:
    assert len({*Resource}) == 4
