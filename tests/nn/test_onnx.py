"""ONNX models behind wasi-nn, against ONNX Runtime called plainly."""

from __future__ import annotations

import logging
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.host.probe import PAGE
from tests.nn.models import add, endless, external, identity, onnx_model
from tests.nn.probe import OK, SIZE, TYPES, NnProbe
from wasmetal import Limits
from wasmetal.errors import GuestError, LimitError
from wasmetal.nn.errors import NnErrno

onnxruntime = pytest.importorskip("onnxruntime")
BAD, UNSUPPORTED, LARGE = NnErrno.INVALID_ARGUMENT, NnErrno.UNSUPPORTED_OPERATION, NnErrno.TOO_LARGE
F32 = np.float32
BLOCK = 512
"""Bytes that each tensor of ONNX Runtime's is charged for, beyond its size."""


def plainly(model: bytes, *inputs: Any) -> list[Any]:
    """What ONNX Runtime gives."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found: list[Any] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found


class Scene:
    """Guests with a model each, by name or by bytes."""

    def __init__(self, folder: Path, by_name: bool) -> None:
        self.folder, self.by_name = folder, by_name

    def __call__(self, model: bytes, **limits: Any) -> NnProbe:
        if self.by_name:
            (self.folder / "model.onnx").write_bytes(model)
            return NnProbe(nn={"m": self.folder / "model.onnx"}, limits=Limits(**limits))
        return BytesProbe(model, limits=Limits(nn_model_bytes=1 << 20, **limits))


class BytesProbe(NnProbe):
    def __init__(self, model: bytes, **grants: Any) -> None:
        super().__init__(**grants)
        self.model = model

    def graph(self, *_: Any) -> int:
        assert self.try_load() == OK
        return self.u32()

    def try_load(self) -> NnErrno:
        self.put(self.TEXT, struct.pack("<II", self.DATA, self.put(self.DATA, self.model)))
        return self.load(self.TEXT, 1, 1, 0, self.OUT)


def loaded(probe: NnProbe) -> NnErrno:
    if isinstance(probe, BytesProbe):
        return probe.try_load()
    errno: NnErrno = probe.load_by_name(probe.TEXT, probe.put(probe.TEXT, b"m"), probe.OUT)
    return errno


@pytest.fixture(params=[True, False], ids=["by name", "by bytes"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(tmp_path, request.param)


@pytest.fixture
def named(tmp_path: Path) -> Scene:
    return Scene(tmp_path, True)


def bind(probe: NnProbe, function: Any, context: int, index: int, array: np.ndarray[Any, Any], at: int) -> NnErrno:
    errno: NnErrno = function(context, index, probe.record(at, array.nbytes, array.shape, TYPES[array.dtype]))
    return errno


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (0, 5)], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, F32, np.float64, np.uint8, np.int32, np.int64])
def test_every_type(scene: Scene, dtype: Any, shape: tuple[int, ...]) -> None:
    value = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    with scene(identity(dtype)) as probe:
        context = probe.context()
        assert probe.set(context, 0, value) == OK
        assert probe.compute(context) == OK
        assert probe.output(context) == value.tobytes()
        assert probe.guest.counters.bytes_copied == 2 * value.nbytes


def test_the_numbering_before_2023(scene: Scene) -> None:
    for dtype, number in ((np.uint8, 2), (np.int32, 3)):
        value = np.arange(6).astype(dtype).reshape(2, 3)
        with scene(identity(dtype)) as probe:
            context = probe.context()
            record = probe.record(probe.DATA, probe.put(probe.DATA, value), value.shape, number)
            assert probe.set_input(context, 0, record) == OK
            assert probe.compute(context) == OK
            assert probe.output(context) == value.tobytes()


def test_scalars_and_several_inputs(scene: Scene) -> None:
    model = onnx_model(
        [helper.make_node("Mul", ["a", "s"], ["p"]), helper.make_node("Sub", ["a", "s"], ["d"])],
        {"a": (np.int64, ("n",)), "s": (np.int64, ())},
        {"p": (np.int64, ("n",)), "d": (np.int64, ("n",))},
    )
    values = np.arange(5), np.array(3)
    with scene(model) as probe:
        context = probe.context()
        for number, value in enumerate(values):
            assert probe.set(context, number, value, probe.DATA + 3) == OK  # misaligned
        assert probe.compute(context) == OK
        assert [probe.output(context, i) for i in (0, 1)] == [each.tobytes() for each in plainly(model, *values)]


def test_a_context_computes_again_with_other_shapes(scene: Scene) -> None:
    with scene(add()) as probe:
        context = probe.context()
        assert probe.set(context, 1, np.array([1, 2, 3], F32)) == OK
        for rows in (1, 4, 2, 4):
            value = np.random.default_rng(rows).random((rows, 3), F32)
            assert probe.set(context, 0, value) == OK
            assert probe.compute(context) == OK
            assert probe.output(context) == (value + np.array([1, 2, 3], F32)).tobytes()


def test_wrong_inputs(scene: Scene) -> None:
    with scene(add()) as probe:
        context = probe.context()
        for value in (
            np.zeros((2, 4), F32),
            np.zeros((2, 3, 1), F32),
            np.zeros(3, F32),
            np.zeros((2, 3), np.float64),
            np.zeros((2, 3), np.int32),
        ):
            assert probe.set(context, 0, value) == BAD
            assert bind(probe, probe.bind_input, context, 0, value, probe.DATA) == BAD
        good = np.zeros((2, 3), F32)
        assert probe.set(context, 2, good) == BAD
        assert probe.set(context, 2**32 - 1, good) == BAD
        for shape, nbytes, number in (((2, 3), 23, 1), ((2, 3), 25, 1), ((2**31, 2**31, 3), 24, 1), ((2, 3), 24, 9)):
            assert probe.set_input(context, 0, probe.record(probe.DATA, nbytes, shape, number)) == BAD
            assert probe.bind_input(context, 0, probe.record(probe.DATA, nbytes, shape, number)) == BAD
            assert probe.bind_output(context, 0, probe.record(probe.DATA, nbytes, shape, number)) == BAD
        assert probe.compute(context) == BAD  # nothing was set
        assert probe.set(context, 0, good) == OK
        assert probe.compute(context) == BAD  # input 1 is missing
        assert probe.get_output(context, 0, probe.ROOM, 4, probe.OUT) == BAD
        assert probe.set(context, 1, good[0]) == OK
        assert probe.compute(context) == OK
        assert probe.get_output(context, 1, probe.ROOM, 4, probe.OUT) == BAD
        for function in (probe.compute_single, probe.fini_single):
            assert function(context) == UNSUPPORTED
        assert probe.get_output_single(context, 0, probe.ROOM, 4, probe.OUT) == UNSUPPORTED


def test_a_run_that_fails(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    reshape = onnx_model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        {"x": (F32, ("n",)), "s": (np.int64, ("r",))},
        {"y": (F32, ("a", "b"))},
    )
    with scene(reshape) as probe:
        context = probe.context()
        probe.set(context, 0, np.zeros(6, F32))
        probe.set(context, 1, np.array([4, 4]))
        assert probe.compute(context) == NnErrno.RUNTIME_ERROR
        assert probe.get_output(context, 0, probe.ROOM, 4, probe.OUT) == BAD
        probe.set(context, 1, np.array([2, 3]))
        assert probe.compute(context) == OK
    assert capfd.readouterr().err == ""


def test_types_that_wasi_nn_has_not(named: Scene) -> None:
    model = onnx_model(
        [helper.make_node("Greater", ["a", "b"], ["c"]), helper.make_node("Add", ["a", "b"], ["d"])],
        {"a": (F32, (2,)), "b": (F32, (2,))},
        {"c": (np.bool_, (2,)), "d": (F32, (2,))},
    )
    with named(model) as probe:
        context = probe.context()
        for index in (0, 1):
            assert probe.set(context, index, np.ones(2, F32)) == OK
        assert probe.compute(context) == OK
        assert probe.get_output(context, 0, probe.ROOM, 4, probe.OUT) == UNSUPPORTED
        assert probe.output(context, 1) == np.full(2, 2, F32).tobytes()
    with named(identity(np.int8)) as probe:
        assert probe.set(probe.context(), 0, np.ones((2, 2), np.uint8)) == UNSUPPORTED


@pytest.mark.parametrize("data", [b"", b"garbage", b"\0" * 100, add()[:-20]], ids=["none", "text", "zeros", "cut"])
def test_damaged_models(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BytesProbe(data, limits=Limits(nn_model_bytes=1000)) as probe:
        assert probe.try_load() == NnErrno.INVALID_ENCODING
        assert probe.guest._account.device_bytes == 0
    assert not caplog.records
    (tmp_path / "m.onnx").write_bytes(data)
    with NnProbe(nn={"m": tmp_path / "m.onnx"}) as probe, caplog.at_level(logging.WARNING, "wasmetal.nn"):
        assert loaded(probe) == NnErrno.INVALID_ENCODING
    assert len(caplog.records) == 1


# ---- Binding


def spy(monkeypatch: pytest.MonkeyPatch, name: str, seen: list[tuple[str, int]], base: int) -> None:
    """Have it noted which address, as one of the guest's, ONNX Runtime is given for which name."""
    plain = getattr(onnxruntime.IOBinding, name)

    def noted(self: Any, *args: Any) -> None:
        if len(args) > 5:
            seen.append((args[0], args[5] - base))
        plain(self, *args)

    monkeypatch.setattr(onnxruntime.IOBinding, name, noted)


def test_bound_tensors_are_used_where_they_lie(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = np.arange(6, dtype=F32).reshape(2, 3), np.array([1, 2, 3], F32)
    with scene(add()) as probe:
        context = probe.context()
        base = probe.bytes.ctypes.data
        seen: list[tuple[str, int]] = []
        spy(monkeypatch, "bind_input", seen, base)
        spy(monkeypatch, "bind_output", seen, base)
        inputs, result = (4 * PAGE + 64, 4 * PAGE + 128), 5 * PAGE + 4
        for index, value in enumerate((one, other)):
            probe.put(inputs[index], value)
            assert bind(probe, probe.bind_input, context, index, value, inputs[index]) == OK
        assert bind(probe, probe.bind_output, context, 0, one, result) == OK
        assert seen == [("a", inputs[0]), ("b", inputs[1]), ("c", result)]
        for factor in (1, 2):
            probe.put(inputs[0], factor * one)
            before = probe.bytes.copy()
            assert probe.compute(context) == OK
            assert (probe.floats(result, 6) == (factor * one + other).reshape(-1)).all()
            before[result : result + 24] = probe.bytes[result : result + 24]
            assert (probe.bytes == before).all()
        assert probe.guest.counters.bytes_copied == 0
        assert probe.guest.counters.bytes_shared == 60
        assert probe.output(context) == (2 * one + other).tobytes()  # a copy, which is counted
        assert probe.guest.counters.bytes_copied == 24
        assert probe.set(context, 0, one) == OK  # in place of what was bound
        probe.put(inputs[0], 0 * one)
        assert probe.compute(context) == OK
        assert (probe.floats(result, 6) == (one + other).reshape(-1)).all()


def test_what_cannot_be_bound(named: Scene) -> None:
    value = np.zeros((2, 3), F32)
    with named(add()) as probe:
        context = probe.context()
        for function in (probe.bind_input, probe.bind_output):
            assert bind(probe, function, context, 0, value, probe.DATA + 2) == BAD  # misaligned
            assert bind(probe, function, context, 0, value, SIZE - 20) == BAD
            assert bind(probe, function, context, 2, value, probe.DATA) == BAD
            assert bind(probe, function, context, 0, value[0], probe.DATA) == BAD
        assert bind(probe, probe.bind_input, context, 0, value, probe.DATA) == OK
        assert bind(probe, probe.bind_input, context, 1, value[0], probe.DATA + 64) == OK
        assert bind(probe, probe.bind_output, context, 0, np.zeros((3, 3), F32), probe.ROOM) == OK
        assert probe.compute(context) == NnErrno.RUNTIME_ERROR  # of another shape than is computed
        assert not probe.bytes[probe.ROOM :].any()
        for at in (probe.DATA, probe.DATA + 20, probe.DATA + 64 + 8, probe.DATA - 20):
            assert bind(probe, probe.bind_output, context, 0, value, at) == OK
            assert probe.compute(context) == BAD  # it overlaps an input
        assert bind(probe, probe.bind_output, context, 0, value, probe.DATA + 24) == OK
        assert probe.compute(context) == OK


def test_outputs_that_overlap(named: Scene) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])]
    with named(onnx_model(nodes, {"x": (F32, (4,))}, {"y": (F32, (4,)), "z": (F32, (4,))})) as probe:
        context = probe.context()
        value = np.arange(4, dtype=F32)
        assert probe.set(context, 0, value) == OK
        assert bind(probe, probe.bind_output, context, 1, value, probe.ROOM) == OK
        assert bind(probe, probe.bind_output, context, 0, value, probe.ROOM + 12) == OK
        assert probe.compute(context) == BAD
        assert bind(probe, probe.bind_output, context, 0, value, probe.ROOM + 16) == OK
        assert probe.compute(context) == OK
        assert probe.floats(probe.ROOM, 8).tolist() == [0, 1, 2, 3, 0, -1, -2, -3]


def test_an_output_that_is_an_input_or_a_weight(scene: Scene) -> None:
    """Its bytes are there even when the input was replaced and the graph unloaded."""
    weight = helper.make_tensor("w", 1, [1024], np.arange(1024, dtype=F32))
    model = onnx_model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["w"], ["z"])],
        {"x": (F32, (1024,))},
        {"y": (F32, (1024,)), "z": (F32, (1024,))},
        weight,
    )
    value = np.random.default_rng(1).random(1024, F32)
    with scene(model) as probe:
        graph = probe.graph()
        context = probe.context(graph)
        probe.set(context, 0, value)
        assert probe.compute(context) == OK
        for _ in range(20):
            probe.set(context, 0, np.zeros(1024, F32))
        assert probe.output(context) == value.tobytes()
        assert probe.unload(graph) == OK
        assert probe.output(context) == value.tobytes()
        assert probe.output(context, 1) == np.arange(1024, dtype=F32).tobytes()


# ---- Limits and security


def weights(scene: Scene, model: bytes) -> int:
    """Bytes that a model of a node with an input and an output is charged for."""
    return 2 * len(model) + (0 if scene.by_name else 3 * 4096)


def test_memory_is_charged(scene: Scene) -> None:
    model = identity(F32, ("n",))
    nbytes = weights(scene, model)
    with scene(model, device_bytes=nbytes + 1000 + BLOCK) as probe:
        account = probe.guest._account
        graph = probe.graph()
        assert account.device_bytes == nbytes
        context = probe.context(graph)
        assert probe.set(context, 0, np.zeros(251 + BLOCK // 4, F32)) == LARGE
        for count in (200, 250, 125):
            assert probe.set(context, 0, np.zeros(count, F32)) == OK
            assert account.device_bytes == nbytes + 4 * count
        assert probe.compute(context) == OK
        assert account.device_bytes == nbytes + 1000 + BLOCK
        assert probe.compute(context) == OK
        assert probe.set(context, 0, np.zeros(126, F32)) == LARGE
        other = probe.context(graph)
        assert probe.set(other, 0, np.zeros(1, F32)) == LARGE
        assert probe.unload(graph) == OK
        assert account.device_bytes == 500
        assert len(probe.output(context)) == 500
        assert probe.finalize_execution_context(context) == OK
        assert account.device_bytes == 0
    with scene(model, device_bytes=nbytes - 1) as probe:
        assert loaded(probe) == LARGE


def test_outputs_beyond_the_limit(scene: Scene) -> None:
    model = onnx_model(
        [helper.make_node("ConstantOfShape", ["s"], ["y"])], {"s": (np.int64, (1,))}, {"y": (F32, ("n",))}
    )
    with scene(model, device_bytes=100_000) as probe:
        context = probe.context()
        assert probe.set(context, 0, np.array([1000])) == OK
        assert probe.compute(context) == OK
        for count in (100_000, 10**12, 2**60):
            assert probe.set(context, 0, np.array([count])) == OK
            assert probe.compute(context) == LARGE
            assert probe.get_output(context, 0, probe.ROOM, 4, probe.OUT) == BAD
            assert probe.guest._account.device_bytes == weights(scene, model) + 8


def test_the_wall_limit_stops_a_run(scene: Scene) -> None:
    with scene(endless(), wall_seconds=0.5) as probe:

        def run() -> None:
            context = probe.context()
            assert probe.set(context, 0, np.zeros(1, F32)) == OK
            probe.compute(context)

        begin = time.monotonic()
        with pytest.raises(LimitError, match="wall time"):
            probe.enter(run)
        assert time.monotonic() - begin < 60
        assert probe.guest.counters.device_seconds > 0.1


def test_nothing_of_a_guests_model_is_run_while_it_is_loaded() -> None:
    n = 1500
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{i}"] * 2, [f"m{i + 1}"]) for i in range(1000)]
    nodes.append(helper.make_node("ReduceSum", ["m1000"], ["y"], keepdims=0))
    model = onnx_model(nodes, {}, {"y": (F32, ())}, helper.make_tensor("s", 7, [2], [n, n]))
    with BytesProbe(model, limits=Limits(nn_model_bytes=1 << 20, device_seconds=2)) as probe:
        context = probe.context()  # folding its constants would take minutes
        with pytest.raises(LimitError, match="device time"):
            probe.compute(context)


def test_the_limit_on_device_time(named: Scene) -> None:
    with named(endless(), device_seconds=0.3) as probe:
        context = probe.context()
        probe.set(context, 0, np.zeros(1, F32))
        with pytest.raises(LimitError, match="device time"):
            probe.compute(context)


def test_a_run_can_be_stopped_from_outside(named: Scene) -> None:
    import threading

    with named(endless()) as probe:
        context = probe.context()
        probe.set(context, 0, np.zeros(1, F32))
        timer = threading.Timer(0.3, probe.guest.stop)
        timer.start()
        with pytest.raises(GuestError, match="stopped"):
            probe.compute(context)
        timer.join()


@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "constant"])
def test_a_guests_model_reads_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: bool) -> None:
    (tmp_path / "secret.bin").write_bytes(b"secret" * 10)
    monkeypatch.chdir(tmp_path)
    if not constant:  # the danger is there
        (read,) = plainly(external("secret.bin"))
        assert read.tobytes().startswith(b"secret")
    secret = np.frombuffer(b"memory of the host", np.uint8)
    places = ["secret.bin", "./secret.bin", str(tmp_path / "secret.bin"), "/proc/self/environ", "/etc/passwd"]
    places += ["../" * depth + str(tmp_path / "secret.bin").lstrip("/") for depth in range(1, 8)]
    places += [os.path.relpath(tmp_path / "secret.bin", folder) for folder in ("/tmp/x", "/")]
    models = [external(place, constant=constant) for place in places]
    models += [external("*/_ORT_MEM_ADDR_/*", secret.ctypes.data, constant=constant)]
    for model in models:
        with BytesProbe(model, limits=Limits(nn_model_bytes=1 << 20)) as probe:
            if probe.try_load() == OK:
                context = probe.context()
                assert probe.compute(context) != OK


def test_a_model_in_onnx_runtimes_own_format(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    onnxruntime.InferenceSession(add(), options, providers=["CPUExecutionProvider"])
    data = (tmp_path / "m.ort").read_bytes()
    assert data[4:8] == b"ORTM"
    with BytesProbe(data, limits=Limits(nn_model_bytes=1 << 20)) as probe:
        assert probe.try_load() == NnErrno.INVALID_ENCODING


numbers = st.one_of(st.integers(0, 8), st.sampled_from([SIZE, SIZE - 24, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set_input", "bind_input", "bind_output", "compute", "get_output"]),
            st.integers(0, 2),
            st.lists(st.one_of(st.just(3), st.just(2), numbers), max_size=3),
            st.one_of(st.integers(0, 5), st.integers(0, 255)),
            st.one_of(st.integers(0, 32).map(lambda n: PAGE + 4 * n), numbers),
            st.one_of(st.just(24), st.just(12), numbers),
        ),
        max_size=12,
    )
)
def test_arbitrary_tensors_in_any_order(named: Scene, calls: list[Any]) -> None:
    """Nothing but a bound output, and what get_output gives, changes in the guest's memory."""
    with named(add()) as probe:
        context = probe.context()
        outputs: set[int] = set()
        for name, index, shape, number, data, nbytes in calls:
            record = probe.record(data, nbytes, tuple(shape), number)
            before = probe.bytes.copy()
            if name == "compute":
                errno = probe.compute(context)
                changed = np.flatnonzero(probe.bytes != before).tolist()
                assert set(changed) <= outputs
            elif name == "get_output":
                errno = probe.get_output(context, index, data, nbytes, probe.OUT)
            else:
                errno = getattr(probe, name)(context, index, record)
                assert (probe.bytes == before).all()
                if errno == OK and name == "bind_output":
                    outputs = set(range(data, data + nbytes))
            assert errno in set(NnErrno)
