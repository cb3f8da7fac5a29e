"""TensorFlow Lite models behind wasi-nn, against LiteRT called plainly."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nn.probe import OK, TYPES, NnProbe
from wasmetal import Limits
from wasmetal.errors import LimitError
from wasmetal.nn.errors import NnErrno
from wasmetal.resident import resident_bytes

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
BAD, UNSUPPORTED, LARGE = NnErrno.INVALID_ARGUMENT, NnErrno.UNSUPPORTED_OPERATION, NnErrno.TOO_LARGE
F32 = np.float32
NUMBERS = {np.dtype(F32): 0, np.dtype(np.int32): 2, np.dtype(np.int64): 4}
"""TensorFlow Lite's own, of its tensors' types."""


Tensor = tuple[str, tuple[int, ...], int, int]
"""Name, shape, number of the type, number of the buffer with its value (0: none)."""


def built(
    operators: list[tuple[str, list[int], list[int], str]],
    tensors: list[Tensor],
    inputs: list[int],
    outputs: list[int],
    *buffers: Any,
) -> bytes:
    """A model. Operators: kind, inputs, outputs, options."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def made(kind: str, **fields: Any) -> Any:
        table = getattr(schema, f"{kind}T")()
        for name, value in fields.items():
            setattr(table, name, value)
        return table

    codes, calls = [], []
    for kind, of, to, options in operators:
        code = getattr(schema.BuiltinOperator, kind)
        codes.append(made("OperatorCode", builtinCode=code, deprecatedBuiltinCode=code, version=1))
        given = {"builtinOptionsType": getattr(schema.BuiltinOptions, options), "builtinOptions": made(options)}
        calls.append(made("Operator", opcodeIndex=len(calls), inputs=of, outputs=to, **given))
    described = [made("Tensor", name=n, shape=list(s), type=k, buffer=buffer) for n, s, k, buffer in tensors]
    values = [made("Buffer", data=value.view(np.uint8).reshape(-1)) for value in buffers]
    graph = made("SubGraph", tensors=described, inputs=inputs, outputs=outputs, operators=calls)
    model = made("Model", version=3, buffers=[schema.BufferT(), *values], operatorCodes=codes, subgraphs=[graph])
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def add(shape: tuple[int, ...] = (2, 3), dtype: Any = F32) -> bytes:
    """c = a + b."""
    tensors = [(name, shape, NUMBERS[np.dtype(dtype)], 0) for name in "abc"]
    return built([("ADD", [0, 1], [2], "AddOptions")], tensors, [0, 1], [2])


def filled(count: int | None) -> bytes:
    """So many elements, or as many as input 0 says, are made of input 1, and added to themselves."""
    tensors = [("n", (1,), 2, 0 if count is None else 1), ("v", (), 0, 0), ("f", (4,), 0, 0), ("y", (4,), 0, 0)]
    operators = [("FILL", [0, 1], [2], "FillOptions"), ("ADD", [2, 2], [3], "AddOptions")]
    inputs = [0, 1] if count is None else [1]
    return built(operators, tensors, inputs, [3], *([] if count is None else [np.array([count], np.int32)]))


def plainly(model: bytes, *inputs: Any) -> Any:
    plain = interpreter.Interpreter(model_content=model)
    plain.allocate_tensors()
    for details, value in zip(plain.get_input_details(), inputs, strict=True):
        plain.set_tensor(details["index"], value)
    plain.invoke()
    return plain.get_tensor(plain.get_output_details()[0]["index"])


def granted(folder: Path, model: bytes, **limits: Any) -> NnProbe:
    (folder / "m.tflite").write_bytes(model)
    return NnProbe(nn={"m": folder / "m.tflite"}, limits=Limits(**limits))


@pytest.mark.parametrize("dtype", [F32, np.int32, np.int64])
def test_it_gives_what_litert_gives(tmp_path: Path, dtype: Any) -> None:
    values = [np.random.default_rng(i).integers(0, 100, (2, 3)).astype(dtype) for i in range(2)]
    model = add(dtype=dtype)
    with granted(tmp_path, model) as probe:
        graph = probe.graph()
        context, other = probe.context(graph), probe.context(graph)
        for index, value in enumerate(values):
            assert probe.set(context, index, value, probe.DATA + 1) == OK  # misaligned
            assert probe.set(other, index, 2 * value) == OK
        for each, factor in ((context, 1), (other, 2), (context, 1)):
            assert probe.compute(each) == OK
            assert probe.output(each) == plainly(model, *(factor * value for value in values)).tobytes()
        assert probe.guest.counters.bytes_copied == 7 * values[0].nbytes
        assert probe.unload(graph) == OK
        assert probe.output(context) == plainly(model, *values).tobytes()
        assert probe.compute(context) == BAD
        for each in (context, other):
            assert probe.finalize_execution_context(each) == OK
        assert probe.guest._account.device_bytes == 0


def test_wrong_calls(tmp_path: Path) -> None:
    value = np.zeros((2, 3), F32)
    with granted(tmp_path, add()) as probe:
        context = probe.context()
        for wrong in (value.reshape(3, 2), value[0], value.astype(np.int32), value.astype(np.float64)):
            assert probe.set(context, 0, wrong) == BAD
        assert probe.set(context, 2, value) == BAD
        assert probe.set_input(context, 0, probe.record(probe.DATA, 23, (2, 3), 1)) == BAD
        assert probe.get_output(context, 0, probe.ROOM, 24, probe.OUT) == BAD
        assert probe.set(context, 0, value) == OK
        assert probe.compute(context) == BAD  # the other one has not been set
        assert probe.set(context, 1, value) == OK
        assert probe.compute(context) == OK
        assert probe.get_output(context, 1, probe.ROOM, 24, probe.OUT) == BAD
        assert probe.get_output(context, 0, probe.ROOM, 23, probe.OUT) == LARGE
        record = probe.record(probe.DATA, 24, (2, 3), TYPES[value.dtype])
        assert probe.bind_input(context, 0, record) == UNSUPPORTED
        assert probe.bind_output(context, 0, record) == UNSUPPORTED
        for function in (probe.compute_single, probe.fini_single):
            assert function(context) == UNSUPPORTED
        assert probe.get_output_single(context, 0, probe.ROOM, 24, probe.OUT) == UNSUPPORTED


@pytest.mark.parametrize(
    ("model", "errno"),
    [(add(), OK), (add()[:-20], NnErrno.INVALID_ENCODING), (b"\x18\0\0\0TFL3" + bytes(90), NnErrno.INVALID_ENCODING)],
    ids=["whole", "cut", "zeros"],
)
def test_models_of_the_guests_own(model: bytes, errno: NnErrno) -> None:
    with NnProbe(limits=Limits(nn_model_bytes=1 << 20)) as probe:
        assert load(probe, model) == errno
        if errno == OK:
            probe.context(probe.u32())


def load(probe: NnProbe, model: bytes) -> NnErrno:
    probe.put(probe.TEXT, struct.pack("<II", probe.DATA, probe.put(probe.DATA, model)))
    errno: NnErrno = probe.load(probe.TEXT, 1, 4, 0, probe.OUT)
    return errno


def test_sizes_that_a_guests_own_model_does_not_tell() -> None:
    with NnProbe(limits=Limits(nn_model_bytes=1 << 20, device_bytes=1 << 20)) as probe:
        account = probe.guest._account
        assert load(probe, filled(None)) == UNSUPPORTED
        before = resident_bytes()
        for count in (10**8, 2 * 10**9):  # it says that there are four
            assert load(probe, filled(count)) in (LARGE, NnErrno.INVALID_ENCODING)
        assert resident_bytes() < before + (64 << 20)
        assert account.device_bytes == 0
        assert load(probe, filled(2 * 10**5)) == OK
        assert probe.init_execution_context(probe.u32(), probe.OUT) == LARGE
        assert load(probe, filled(10**4)) == OK
        before = account.device_bytes
        context = probe.context(probe.u32())
        assert account.device_bytes == before + 8 + 8 * 10**4
        assert probe.set(context, 0, np.array(3, F32)) == OK
        assert probe.compute(context) == OK
        assert probe.get_output(context, 0, probe.ROOM, 1 << 17, probe.OUT) == OK
        assert (probe.floats(probe.ROOM, 10**4) == 6).all()


def test_memory_is_charged_before_it_is_taken(tmp_path: Path) -> None:
    model = add((1 << 14, 1 << 16))
    with granted(tmp_path, model, device_bytes=1 << 20) as probe:
        graph = probe.graph()
        assert probe.guest._account.device_bytes == len(model)
        assert probe.init_execution_context(graph, probe.OUT) == LARGE
        assert probe.guest._account.device_bytes == len(model)
    with granted(tmp_path, model, device_bytes=len(model) - 1) as probe:
        assert probe.load_by_name(probe.TEXT, probe.put(probe.TEXT, b"m"), probe.OUT) == LARGE


def test_a_run_counts_as_device_time(tmp_path: Path) -> None:
    with granted(tmp_path, add(), device_seconds=1e-6) as probe, pytest.raises(LimitError, match="device time"):
        probe.context()
