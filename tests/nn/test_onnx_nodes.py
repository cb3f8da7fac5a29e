"""The node tests of the ``onnx`` package through a guest: the same bytes as ONNX Runtime gives, called plainly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from tests.nn.probe import OK, TYPES, NnProbe

onnxruntime = pytest.importorskip("onnxruntime")
ROOM = 1 << 20
TENSORS = {f"tensor({name})" for name in ("float16", "float", "double", "uint8", "int32", "int64")}
RANDOM = ("bernoulli", "dropout", "random")
"""Parts of the names of cases whose outputs differ from run to run."""


def cases() -> list[Any]:
    return sorted(load_model_tests(kind="node"), key=lambda case: str(case.name))


def inputs_of(folder: Path, names: list[str]) -> list[Any] | None:
    """The arrays of a case; None if there is one that is no tensor."""
    files = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda path: int(path.stem.partition("_")[2]))
    if len(files) != len(names):
        return None
    try:
        return [numpy_helper.to_array(onnx.load_tensor(str(path))) for path in files]
    except Exception:  # a sequence, or an optional value
        return None


def plainly(path: Path) -> tuple[list[Any], list[Any]] | None:
    """Inputs and outputs of a case; None if ONNX Runtime cannot run it, or wasi-nn has not its types."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        given = inputs_of(path.parent, names)
        if given is None:
            return None
        if not all(each.type in TENSORS for each in [*session.get_inputs(), *session.get_outputs()]):
            return None  # 8-bit floats come as uint8
        found = session.run(None, dict(zip(names, given, strict=True)))
    except Exception:
        return None
    arrays = [*given, *found]
    if not all(isinstance(each, np.ndarray) and each.dtype in TYPES and each.nbytes < ROOM for each in arrays):
        return None
    return given, found


def through_a_guest(path: Path, given: list[Any], expected: list[Any]) -> Iterator[bytes]:
    with NnProbe(nn={"m": path}) as probe:
        at = probe.region.size
        probe.guest._instance.exports(probe.guest._store)["memory"].grow(probe.guest._store, 2 * ROOM // 65536)
        context = probe.context()
        for index, value in enumerate(given):
            probe.put(at, value)
            record = probe.record(at, value.nbytes, value.shape, TYPES[value.dtype])
            assert probe.set_input(context, index, record) == OK
        assert probe.compute(context) == OK
        for index, value in enumerate(expected):
            assert probe.get_output(context, index, at, ROOM, probe.OUT) == OK
            assert probe.u32() == value.nbytes
            yield bytes(probe.bytes[at : at + value.nbytes])


def run(chosen: list[Any]) -> tuple[int, list[str]]:
    """How many cases were run, and which gave other bytes."""
    count, different = 0, []
    for case in chosen:
        path = Path(case.model_dir, "model.onnx")
        if any(word in case.name for word in RANDOM) or (both := plainly(path)) is None:
            continue
        count += 1
        got = list(through_a_guest(path, *both))
        if got != [each.tobytes() for each in both[1]]:
            different.append(case.name)
    return count, different


def test_some_nodes() -> None:
    count, different = run(cases()[::20])
    assert not different
    assert count > 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    count, different = run(cases())
    with capsys.disabled():
        print(f"\n{count} node tests of onnx {onnx.__version__} through a guest")
    assert not different
    assert count > 1000
