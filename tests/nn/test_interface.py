"""``wasi_ephemeral_nn`` in front of a backend that doubles bytes: records, pointers, handles, sizes and order."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host.probe import PAGE
from tests.nn.double import Doubling
from tests.nn.probe import OK, SIZE, NnProbe, text
from wasmetal import Guest, Limits, Program
from wasmetal.errors import GuestError
from wasmetal.host.abi.nn import NN, SIGNATURES
from wasmetal.nn.errors import NnErrno

BAD, SMALL, UNSUPPORTED = NnErrno.INVALID_ARGUMENT, NnErrno.TOO_LARGE, NnErrno.UNSUPPORTED_OPERATION
OUTSIDE = [SIZE, SIZE - 1, 2**31, 2**32 - 1]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Doubling]:
    """The backends that guests have, each in place of all others."""
    found: list[Doubling] = []

    def backends(services: Any, *_: Any) -> Doubling:
        found.append(Doubling(services))
        return found[-1]

    monkeypatch.setattr("wasmetal.host.guest.backends", backends)
    return found


@pytest.fixture
def probe(made: list[Doubling]) -> Iterator[NnProbe]:
    limits = Limits(handles=8, nn_model_bytes=1000)
    with NnProbe(nn={"m": "no-such-file", "n": "no-such-file"}, limits=limits) as probe:
        yield probe


def test_a_tensor_goes_in_and_comes_out(probe: NnProbe) -> None:
    context = probe.context()
    assert probe.set(context, 0, np.arange(6, dtype=np.uint8).reshape(2, 3)) == OK
    assert probe.compute(context) == OK
    assert probe.output(context) == bytes([0, 2, 4, 6, 8, 10])
    counters = probe.guest.counters
    assert counters.bytes_copied == 12
    assert counters.host_calls == 5


def test_data_and_records_may_be_misaligned(probe: NnProbe) -> None:
    context = probe.context()
    for at in range(PAGE, PAGE + 8):
        assert probe.set(context, 0, b"abc", at) == OK
        assert probe.compute(context) == OK
        assert probe.get_output(context, 0, probe.ROOM + 1, 3, probe.OUT + 3) == OK
        assert probe.bytes[probe.OUT + 3 : probe.OUT + 7].tobytes() == struct.pack("<I", 3)


def test_data_may_end_where_the_memory_does_and_be_nothing_at_all(probe: NnProbe) -> None:
    context = probe.context()
    assert probe.set(context, 0, b"abc", SIZE - 3) == OK
    for at in (0, 1, SIZE):
        assert probe.set_input(context, 0, probe.record(at, 0, (), 3)) == OK


def test_an_output_that_does_not_fit(probe: NnProbe) -> None:
    context = probe.context()
    probe.set(context, 0, b"abcd")
    probe.compute(context)
    for cap in (0, 3):
        probe.bytes[:] = 7
        assert probe.get_output(context, 0, probe.ROOM, cap, probe.OUT) == SMALL
        assert probe.u32() == 4
        assert (probe.bytes[: probe.OUT] == 7).all()
        assert (probe.bytes[probe.OUT + 4 :] == 7).all()


def test_pointers_outside_of_the_memory(probe: NnProbe) -> None:
    graph = probe.graph()
    context = probe.context(graph)
    probe.put(probe.TEXT, b"m")
    tensor = probe.record(probe.DATA, 4, (4,), 3)
    for at in OUTSIDE:
        assert probe.load_by_name(at, 2, probe.OUT) == BAD
        assert probe.load_by_name(probe.TEXT, 1, at) == BAD
        assert probe.load_by_name_with_config(at, 2, 0, 0, probe.OUT) == BAD
        assert probe.load_by_name_with_config(probe.TEXT, 1, at, 2, probe.OUT) == BAD
        assert probe.load_by_name_with_config(probe.TEXT, 1, 0, 0, at) == BAD
        assert probe.load(at, 1, 1, 0, probe.OUT) == BAD
        assert probe.load(probe.TEXT, 1, 1, 0, at) == BAD
        assert probe.init_execution_context(graph, at) == BAD
        assert probe.set_input(context, 0, at) == BAD
        assert probe.get_output(context, 0, at, 2, probe.OUT) == BAD
        assert probe.get_output(context, 0, probe.ROOM, 4, at) == BAD
        assert probe.get_output_single(context, 0, at, 2, probe.OUT) == BAD
        assert probe.set_input(context, 0, probe.record(at, 2, (2,), 3)) == BAD
        probe.put(tensor, struct.pack("<II", at, 1))
        assert probe.set_input(context, 0, tensor) == BAD
        probe.put(probe.TEXT + 8, struct.pack("<II", at, 2))
        assert probe.load(probe.TEXT + 8, 1, 1, 0, probe.OUT) == BAD
    assert probe.set(context, 0, b"fine") == OK


@pytest.mark.parametrize("length", [SIZE, 2**31, 2**32 - 1])
def test_lengths_that_leave_the_memory(probe: NnProbe, length: int) -> None:
    context = probe.context()
    assert probe.load_by_name(probe.TEXT, length, probe.OUT) == BAD
    assert probe.load_by_name_with_config(probe.TEXT, 1, probe.TEXT, length, probe.OUT) == BAD
    assert probe.load(probe.TEXT, length, 1, 0, probe.OUT) == BAD
    assert probe.get_output(context, 0, probe.ROOM, length, probe.OUT) == BAD
    assert probe.set_input(context, 0, probe.record(probe.DATA, length, (length,), 3)) == BAD
    tensor = probe.record(probe.DATA, 4, (4,), 3)
    probe.put(tensor + 4, struct.pack("<I", length))
    assert probe.set_input(context, 0, tensor) == BAD


def test_handles_of_the_wrong_kind_and_none(probe: NnProbe) -> None:
    graph = probe.graph()
    context = probe.context(graph)
    tensor = probe.record(probe.DATA, 4, (4,), 3)
    for handle in (0, 1, 2**32 - 1, graph, context ^ 1):
        assert probe.set_input(handle, 0, tensor) == BAD
        assert probe.bind_input(handle, 0, tensor) == BAD
        assert probe.bind_output(handle, 0, tensor) == BAD
        assert probe.compute(handle) == BAD
        assert probe.compute_single(handle) == BAD
        assert probe.fini_single(handle) == BAD
        assert probe.get_output(handle, 0, probe.ROOM, 4, probe.OUT) == BAD
        assert probe.get_output_single(handle, 0, probe.ROOM, 4, probe.OUT) == BAD
        assert probe.finalize_execution_context(handle) == BAD
    for handle in (0, 1, 2**32 - 1, context, graph ^ 1):
        assert probe.init_execution_context(handle, probe.OUT) == BAD
        assert probe.unload(handle) == BAD
    assert probe.set(context, 0, b"fine") == OK


def test_handles_end(probe: NnProbe, made: list[Doubling]) -> None:
    graph = probe.graph()
    context = probe.context(graph)
    assert probe.finalize_execution_context(context) == OK
    assert probe.finalize_execution_context(context) == BAD
    assert made[0].graphs[0].contexts[0].released
    assert probe.unload(graph) == OK
    assert probe.unload(graph) == BAD
    assert made[0].graphs[0].closed == 1


def test_names(probe: NnProbe, made: list[Doubling]) -> None:
    graph = probe.graph("m")
    assert probe.graph("m") == graph
    assert probe.graph("m", b'{"a": 1}') == graph
    assert made[0].graphs[0].config == {"a": 1}
    assert probe.graph("n") != graph
    for name in (b"", b"M", b"m\0", b"x" * 4096, b"../m"):
        assert probe.load_by_name(probe.TEXT, probe.put(probe.TEXT, name), probe.OUT) == NnErrno.NOT_FOUND
    for name in (b"\xff", b"x" * 4097):
        assert probe.load_by_name(probe.TEXT, probe.put(probe.TEXT, name), probe.OUT) == BAD
    assert probe.unload(graph) == OK
    assert probe.graph("m") != graph


@pytest.mark.parametrize(
    ("config", "errno"),
    [
        (b"", OK),
        (b"{}\0", OK),
        (b"{", NnErrno.INVALID_ENCODING),
        (b"\xff", NnErrno.INVALID_ENCODING),
        (b"[" * 100_000, NnErrno.INVALID_ENCODING),
        (b"[]", BAD),
        (b"{}" + b" " * (1 << 18), SMALL),
    ],
    ids=lambda value: str(value)[:12],
)
def test_configs(probe: NnProbe, config: bytes, errno: NnErrno) -> None:
    probe.put(probe.TEXT, b"m")
    n = probe.put(probe.DATA, config)
    assert probe.load_by_name_with_config(probe.TEXT, 1, probe.DATA, n, probe.OUT) == errno


def load(probe: NnProbe, *parts: bytes, encoding: int = 5, target: int = 0) -> NnErrno:
    at, records = probe.DATA, b""
    for part in parts:
        records += struct.pack("<II", at, probe.put(at, part))
        at += len(part)
    probe.put(probe.TEXT, records)
    return probe.load(probe.TEXT, len(parts), encoding, target, probe.OUT)


def test_models_of_the_guests_own(probe: NnProbe, made: list[Doubling]) -> None:
    for encoding in (1, 4, 5, 6):
        assert load(probe, b"model", b'{"a": 1}', encoding=encoding) == OK
        assert made[0].graphs[-1].source.model == b"model"
        assert made[0].graphs[-1].config == {"a": 1}
    for encoding in (0, 2, 3, 7, 2**32 - 1):
        assert load(probe, b"model", encoding=encoding) == NnErrno.INVALID_ENCODING
    assert load(probe, b"model", target=4) == BAD
    assert load(probe, b"model", b"{") == NnErrno.INVALID_ENCODING
    assert load(probe, b"a", b"b", b"{}") == NnErrno.INVALID_ENCODING
    assert load(probe) == BAD
    assert load(probe, b"x" * 1000) == OK
    assert load(probe, b"x" * 1001) == SMALL


def test_models_of_the_guests_own_are_not_allowed_by_default(made: list[Doubling]) -> None:
    with NnProbe() as probe:
        assert load(probe, b"model") == UNSUPPORTED
        assert not made[0].graphs


def test_outputs_can_be_read_after_unload(probe: NnProbe) -> None:
    graph = probe.graph()
    context = probe.context(graph)
    probe.set(context, 0, b"\1\2")
    probe.compute(context)
    assert probe.unload(graph) == OK
    assert probe.output(context) == b"\2\4"
    assert probe.compute(context) == BAD
    assert probe.set(context, 0, b"a") == BAD
    assert probe.compute_single(context) == BAD
    assert probe.fini_single(context) == BAD
    assert probe.bind_input(context, 0, probe.record(probe.DATA, 4, (4,), 3)) == BAD
    assert probe.finalize_execution_context(context) == OK


def test_the_limit_on_handles(probe: NnProbe) -> None:
    graph = probe.graph()
    contexts = [probe.context(graph) for _ in range(7)]
    assert probe.init_execution_context(graph, probe.OUT) == NnErrno.BUSY
    assert probe.load_by_name(probe.TEXT, probe.put(probe.TEXT, b"n"), probe.OUT) == NnErrno.BUSY
    assert load(probe, b"model") == NnErrno.BUSY
    assert probe.finalize_execution_context(contexts[0]) == OK
    assert probe.init_execution_context(graph, probe.OUT) == OK


def test_a_failure_of_the_backend_is_logged_once(
    probe: NnProbe, made: list[Doubling], caplog: pytest.LogCaptureFixture
) -> None:
    context = probe.context()
    made[0].graphs[0].fails = True
    probe.set(context, 0, b"a")
    with caplog.at_level(logging.ERROR, "wasmetal.guest"):
        for _ in range(3):
            assert probe.compute(context) == NnErrno.RUNTIME_ERROR
    assert [record.message for record in caplog.records] == ["wasi_ephemeral_nn.compute: RuntimeError: broken"]


def test_what_is_held_is_released_with_the_guest(made: list[Doubling]) -> None:
    with NnProbe(nn={"m": "no-such-file"}) as probe:
        probe.context()
        probe.context()
    assert made[0].closed
    assert made[0].graphs[0].closed == 1


def test_a_guest_with_a_64_bit_memory_is_refused() -> None:
    with pytest.raises(GuestError, match=r"imports wasi_ephemeral_nn, which is for 32-bit memories"):
        Program(bytes(wasmtime.wat2wasm(text("i64"))))


def test_a_guest_without_a_memory(made: list[Doubling]) -> None:
    code = f"""(module (import "{NN.name}" "compute" (func $compute (param i32) (result i32)))
      (func (export "go") (result i32) (call $compute (i32.const 1))))"""
    with Guest(code.encode()) as guest:
        assert guest.call("go") == NnErrno.MISSING_MEMORY


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with NnProbe(nn={"m": tmp_path / "none.gguf"}) as probe:
        assert probe.load_by_name(probe.TEXT, probe.put(probe.TEXT, b"m"), probe.OUT) == NnErrno.MODEL_NOT_FOUND


numbers = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 64, PAGE, SIZE, SIZE - 4, 2**31, 2**32 - 1]),
    st.builds(lambda n, by: (n + by) % 2**32, st.sampled_from([0, SIZE]), st.integers(-64, 64)),
    st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize("name", SIGNATURES)
def test_arbitrary_integers(probe: NnProbe, name: str) -> None:
    """Each call gives a documented errno, and writes nothing but what it gives."""
    function = next(each for each in NN.functions if each.name == name)
    documented = {OK, *function.all_errors}
    graph = probe.graph()
    live = [graph, probe.context(graph)]
    arguments = [st.one_of(st.sampled_from(live), numbers) if kind == "u32" else numbers for kind in function.kinds]

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.tuples(*arguments))
    def attack(values: tuple[int, ...]) -> None:
        if name in ("unload", "finalize_execution_context") and values[0] in live:
            return
        memory = probe.bytes
        memory[:] = 0xA5
        errno = getattr(probe, name)(*values)
        assert errno in documented
        assert probe.region.size == SIZE
        if errno not in (OK, SMALL):
            assert (memory == 0xA5).all()
        if errno == OK and name == "init_execution_context":
            assert probe.finalize_execution_context(probe.u32(values[1])) == OK

    attack()


calls = st.lists(st.tuples(st.sampled_from(sorted(SIGNATURES)), st.lists(st.integers(0, 9), min_size=6, max_size=6)))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls)
def test_any_order(made: list[Doubling], calls: list[Any]) -> None:
    """Calls with numbers that are close to right, in any order. Nothing fails on the host, and all is released."""
    with NnProbe(nn={"m": "no-such-file"}, limits=Limits(handles=4)) as probe:
        handles = [0, 0]
        for name, choice in calls:
            probe.put(probe.TEXT, b"m")
            tensor = probe.record(probe.DATA, 8, (2,), 1)
            values = [
                [*handles, tensor, probe.TEXT, 1, 0, probe.OUT, probe.ROOM, 64, 2][choice[i]]
                for i in range(len(SIGNATURES[name]))
            ]
            errno = getattr(probe, name)(*values)
            assert errno != NnErrno.RUNTIME_ERROR
            if errno == OK and name in ("load_by_name", "init_execution_context"):
                handles[name == "init_execution_context"] = probe.u32(values[-1])
    assert made[-1].closed
