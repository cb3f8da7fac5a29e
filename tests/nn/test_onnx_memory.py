"""What ONNX models allocate, held to the guest's limit: hostile models, against the system's own measurement."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from onnxruntime import InferenceSession

from tests.nn import hostile
from tests.nn.models import add, onnx_model
from tests.nn.probe import OK, NnProbe
from tests.nn.test_onnx import BytesProbe
from tests.security.peak import growth_below
from wasmetal import Limits, NnModel
from wasmetal.nn.errors import NnErrno
from wasmetal.nn.onnx import backend
from wasmetal.nn.onnx.context import OnnxContext
from wasmetal.resident import resident_bytes

F32 = np.float32
MB = 1 << 20
LIMIT = 48 * MB
SLACK = 48 * MB
"""By which the measurements may be more than is charged: other parts of the process allocate, too."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux measures a process's peak")


def guest(model: bytes, folder: Path | None, limit: int = LIMIT) -> NnProbe:
    """With a model by name, from a file in this folder, or by bytes."""
    limits = Limits(nn_model_bytes=MB, device_bytes=limit)
    if folder is None:
        return BytesProbe(model, limits=limits)
    (folder / "m.onnx").write_bytes(model)
    return NnProbe(nn={"m": NnModel(folder / "m.onnx", {"threads": 1})}, limits=limits)


@linux
@pytest.mark.parametrize(
    ("name", "by_bytes"), [*((name, True) for name in hostile.MODELS), ("Scan", False), ("Loop, doubling", False)]
)
def test_hostile_models(name: str, by_bytes: bool, tmp_path: Path) -> None:
    with guest(hostile.MODELS[name], None if by_bytes else tmp_path) as probe:
        graph = probe.graph()
        context = probe.context(graph)
        with growth_below(LIMIT + SLACK):
            for _ in range(2):
                assert probe.compute(context) == NnErrno.TOO_LARGE
        assert probe.guest._account.device_bytes > 0
        assert probe.unload(graph) == OK
        assert probe.guest._account.device_bytes == 0


def test_why_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with guest(hostile.MODELS["Expand"], None) as probe, caplog.at_level(logging.DEBUG, "wasmetal.guest"):
        assert probe.compute(probe.context()) == NnErrno.TOO_LARGE
    (record,) = caplog.records
    assert "compute: TOO_LARGE: limit reached: 4000000000 bytes more than" in record.getMessage()


@linux
@pytest.mark.parametrize("name", hostile.REFUSED)
def test_what_a_guests_own_model_may_not_have(name: str) -> None:
    with growth_below(SLACK), guest(hostile.REFUSED[name], None) as probe:
        assert isinstance(probe, BytesProbe)
        assert probe.try_load() == NnErrno.UNSUPPORTED_OPERATION
        assert probe.guest._account.device_bytes == 0
        probe.model = add()
        context = probe.context()  # and the guest goes on
        assert probe.set(context, 0, np.ones((2, 3), F32)) == OK
        assert probe.set(context, 1, np.ones(3, F32)) == OK
        assert probe.compute(context) == OK
        assert probe.output(context) == np.full((2, 3), 2, F32).tobytes()


def chain(count: int, length: int = 4) -> bytes:
    """y = sum(-…-x), over ``count`` elements."""
    nodes = [helper.make_node("Expand", ["x", "n"], ["t0"])]
    nodes += [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(length)]
    nodes.append(helper.make_node("ReduceSum", [f"t{length}"], ["y"], keepdims=0))
    return onnx_model(nodes, {"x": (F32, (1,)), "n": (np.int64, (1,))}, {"y": (F32, ())})


@linux
def test_memory_is_given_back() -> None:
    model = chain(0)
    with guest(model, None, 1 << 30) as probe:
        account = probe.guest._account
        graph = probe.graph()
        loaded, before = account.device_bytes, resident_bytes()
        context = probe.context(graph)
        assert probe.set(context, 0, np.ones(1, F32)) == OK
        assert probe.set(context, 1, np.array([20 * MB])) == OK
        for _ in range(2):
            assert probe.compute(context) == OK
            assert account.device_bytes >= loaded + 80 * MB  # kept for the next run, and charged
        assert resident_bytes() > before + 70 * MB
        assert probe.set(context, 1, np.array([1000])) == OK
        for _ in range(5):  # no longer of use
            assert probe.compute(context) == OK
        assert account.device_bytes < loaded + MB
        assert resident_bytes() < before + 20 * MB
        assert probe.set(context, 1, np.array([20 * MB])) == OK
        assert probe.compute(context) == OK
        assert probe.unload(graph) == OK
        assert resident_bytes() < before + 20 * MB
        assert account.device_bytes == 4  # the output


def test_what_is_kept_makes_room_for_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(chain(0))
    (tmp_path / "b.onnx").write_bytes(chain(0))
    grants = {name: tmp_path / f"{name}.onnx" for name in "ab"}
    with NnProbe(nn=grants, limits=Limits(device_bytes=30 * MB)) as probe:
        contexts = [probe.context(probe.graph(name)) for name in "ab"]
        for count in (3 * MB, 2 * MB, MB, 3 * MB + 1):  # one run takes up to 24 MB
            for context in contexts:
                assert probe.set(context, 0, np.ones(1, F32)) == OK
                assert probe.set(context, 1, np.array([count])) == OK
                assert probe.compute(context) == OK
                assert np.frombuffer(probe.output(context), F32) == count
        assert probe.set(contexts[0], 1, np.array([5 * MB])) == OK
        assert probe.compute(contexts[0]) == NnErrno.TOO_LARGE
        assert probe.compute(contexts[1]) == OK


@linux
def test_several_guests_at_once() -> None:
    """Each is held to its own limit, and hostile ones cost the others nothing but time."""
    names = ["Expand", "Loop, doubling", "Loop, accumulating", "Resize"]
    wrong: list[BaseException] = []

    def attack(name: str) -> None:
        with guest(hostile.MODELS[name], None, 24 * MB) as probe:
            context = probe.context()
            for _ in range(5):
                assert probe.compute(context) == NnErrno.TOO_LARGE

    def work(_: str) -> None:
        with guest(chain(0), None, 24 * MB) as probe:
            context = probe.context()
            assert probe.set(context, 0, np.ones(1, F32)) == OK
            for count in (2 * MB, MB, 2 * MB, 1000, 2 * MB):
                assert probe.set(context, 1, np.array([count])) == OK
                assert probe.compute(context) == OK
                assert np.frombuffer(probe.output(context), F32) == count

    def noted(action: Callable[[str], None], name: str) -> None:
        try:
            action(name)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=noted, args=(attack, name)) for name in names]
    threads += [threading.Thread(target=noted, args=(work, "")) for _ in range(4)]
    with growth_below(len(threads) * 24 * MB + SLACK):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_sessions_own_threads_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the session's budget; with two of them, the right result."""
    (tmp_path / "m.onnx").write_bytes(chain(0))
    with NnProbe(nn={"m": NnModel(tmp_path / "m.onnx", {"threads": 3})}, limits=Limits(device_bytes=30 * MB)) as probe:
        graph = probe.graph()
        context = probe.context(graph)
        assert probe.set(context, 0, np.ones(1, F32)) == OK
        for count, errno in ((2 * MB, OK), (100 * MB, NnErrno.TOO_LARGE), (MB, OK)):
            assert probe.set(context, 1, np.array([count])) == OK
            assert probe.compute(context) == errno
        assert np.frombuffer(probe.output(context), F32) == MB
        assert probe.unload(graph) == OK
        assert probe.guest._account.device_bytes == 4


def test_a_context_does_not_keep_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    def noted(*args: Any, **options: Any) -> Any:
        session = InferenceSession(*args, **options)
        made.append(weakref.ref(session._sess))  # what the inputs and outputs that it describes refer to
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    weight = helper.make_tensor("w", 1, [MB], np.ones(MB, F32).tobytes(), raw=True)
    nodes = [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("ReduceSum", ["a"], ["y"], keepdims=0)]
    model = onnx_model(nodes, {"x": (F32, (1,))}, {"y": (F32, ())}, weight)
    with guest(model, tmp_path) as probe:
        graph = probe.graph()
        context = probe.context(graph)
        assert probe.set(context, 0, np.zeros(1, F32)) == OK
        assert probe.compute(context) == OK
        (session,) = made
        assert session() is not None
        assert probe.unload(graph) == OK
        gc.collect()
        assert session() is None
        assert probe.guest._account.device_bytes == 4
        assert np.frombuffer(probe.output(context), F32) == MB


def test_a_tensor_that_outlives_its_guest(tmp_path: Path) -> None:
    """What it lies in is freed when it is."""
    made: list[Any] = []

    class Noted(OnnxContext):
        def compute(self) -> None:
            super().compute()
            made.append(self._kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "OnnxContext", Noted)
        with guest(chain(0), tmp_path) as probe:
            context = probe.context()
            assert probe.set(context, 0, np.ones(1, F32)) == OK
            assert probe.set(context, 1, np.array([MB])) == OK
            assert probe.compute(context) == OK
    assert made.pop()[0].numpy() == MB


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_libraries_are_current() -> None:
    pytest.importorskip("ziglang")
    command = [sys.executable, "-m", "wasmetal.nn.onnx.compile", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
