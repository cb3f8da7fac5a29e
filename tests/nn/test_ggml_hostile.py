"""Anything at all to a language model behind wasi-nn: each call gives an errno that is documented, and none fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.tiny import write_tiny_llama
from tests.nn.probe import OK, NnProbe
from wasmetal import NnModel, load_model
from wasmetal.device import Device
from wasmetal.host.abi.nn import NN
from wasmetal.models.lm.model import Model
from wasmetal.nn.errors import NnErrno

DOCUMENTED = {function.name: {OK, *function.all_errors} for function in NN.functions}
KNOWN = (
    *("n-predict", "ctx-size", "temp", "top-k", "top-p", "min-p", "repeat-penalty", "presence-penalty"),
    *("frequency-penalty", "seed", "reverse-prompt", "stream-stdout", "embedding", "grammar", "json-schema"),
    *("n-gpu-layers", "image", "unknown"),
)


@pytest.fixture(scope="module")
def model(cpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=64)
    with load_model(path, cpu) as model:
        yield model


values = st.one_of(
    st.integers(-3, 70),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.floats(0, 2),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.sampled_from(['root ::= "a" | "b"', '{"type": "boolean"}', "root ::= ("]),
    st.lists(st.integers(), max_size=2),
)
options = st.dictionaries(st.sampled_from(KNOWN), values, max_size=4).map(lambda given: json.dumps(given).encode())
calls = st.one_of(
    st.tuples(st.just("set_input"), st.integers(0, 2), st.one_of(options, st.binary(max_size=40), st.just(b"hello"))),
    st.tuples(st.just("set_input"), st.just(1), options),
    st.tuples(st.sampled_from(["compute", "compute_single", "fini_single"]), st.none(), st.none()),
    st.tuples(st.sampled_from(["get_output", "get_output_single"]), st.integers(0, 2), st.integers(0, 2000)),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options, st.lists(calls, max_size=12))
def test_anything(model: Model, config: bytes, sequence: list[Any]) -> None:
    with NnProbe(model.device, nn={"m": NnModel(model, {"n-predict": 9})}) as probe:

        def attack() -> None:
            probe.put(probe.TEXT, b"m" + config)
            errno = probe.load_by_name_with_config(probe.TEXT, 1, probe.TEXT + 1, len(config), probe.OUT)
            assert errno in DOCUMENTED["load_by_name_with_config"]
            context = probe.context()
            for name, index, argument in sequence:
                if name == "set_input":
                    errno = probe.set(context, index, argument)
                elif index is None:
                    errno = getattr(probe, name)(context)
                else:
                    errno = getattr(probe, name)(context, index, probe.ROOM, argument, probe.OUT)
                assert errno in DOCUMENTED[name]
                assert errno != NnErrno.RUNTIME_ERROR
            assert probe.set(context, 1, json.dumps(RIGHT).encode()) == OK
            assert probe.set(context, 0, b"hello") == OK
            assert probe.compute(context) == OK

        probe.enter(attack)
        assert not probe.guest._context.reported


RIGHT = {
    **{"n-predict": 3, "ctx-size": 0, "temp": 0, "top-p": 1, "min-p": 0, "repeat-penalty": 1, "presence-penalty": 0},
    **{"frequency-penalty": 0, "reverse-prompt": "", "embedding": False, "grammar": "", "json-schema": ""},
    "stream-stdout": False,
}
"""Options with which every prompt has an answer."""
