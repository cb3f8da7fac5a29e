"""Answers that obey a grammar, or a JSON schema, whatever the model would say: here it says noise."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.models.random_schema import schema
from tests.models.tiny import write_tiny_llama
from tests.nn.probe import OK, NnProbe
from wasmetal import NnModel, load_model
from wasmetal.device import Device
from wasmetal.models.lm.model import Model
from wasmetal.nn.errors import NnErrno

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def model(cpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=1024)
    with load_model(path, cpu) as model:
        yield model


def answer(probe: NnProbe, context: int, errno: NnErrno = OK, **options: Any) -> str:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    assert probe.set(context, 1, json.dumps(given).encode()) == OK
    assert probe.set(context, 0, b"hello") == OK
    assert probe.compute(context) == errno
    return probe.output(context).decode()


def test_fifty_random_schemas(model: Model) -> None:
    r = random.Random(12)
    options = {"temp": 1.0, "top-k": 64, "top-p": 1.0, "min-p": 0.0, "seed": 1}
    with NnProbe(model.device, nn={"m": NnModel(model, options)}) as probe:
        context = probe.context()

        def obey() -> None:
            for _ in range(50):
                wanted = schema(r)
                text = answer(probe, context, json_schema=json.dumps(wanted))
                jsonschema.validate(json.loads(text), wanted)

        probe.enter(obey)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= "yes" | "no"', "yes|no"),
        ('root ::= item item? "."\nitem ::= [a-c] [0-9]', r"([a-c][0-9]){1,2}\."),
        ("start: /[xy]{3}/", "[xy]{3}"),  # Lark
    ],
)
def test_grammars(model: Model, grammar: str, pattern: str) -> None:
    with NnProbe(model.device, nn={"m": NnModel(model, {"temp": 1.0, "n-predict": 200})}) as probe:
        context = probe.context()
        for seed in range(3):
            assert re.fullmatch(pattern, answer(probe, context, grammar=grammar, seed=seed))
        assert probe.set(context, 1, json.dumps({"grammar": grammar, "temp": 0}).encode()) == OK
        assert probe.set(context, 0, b"hello") == OK
        pieces = []
        while (errno := probe.compute_single(context)) == OK:
            pieces.append(probe.output(context, single=True))
        assert errno == NnErrno.END_OF_SEQUENCE
        assert re.fullmatch(pattern, b"".join(pieces).decode())


@pytest.mark.parametrize(
    "options",
    [
        {"grammar": "root ::= ("},
        {"grammar": 'root ::= "a" missing'},
        {"grammar": "(" * 5000},
        {"json-schema": "{"},
        {"json-schema": "[]"},
        {"json-schema": '{"type": "nonsense"}'},
        {"json-schema": {"$ref": "file:///etc/passwd"}},
        {"json-schema": {"type": "string", "pattern": "(a*)*b" * 10 + "("}},
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_grammars(model: Model, options: dict[str, Any]) -> None:
    with NnProbe(model.device, nn={"m": NnModel(model, {"n-predict": 5})}) as probe:
        context = probe.context()
        assert probe.set(context, 1, json.dumps(options).encode()) == OK
        assert probe.set(context, 0, b"hello") == OK
        assert probe.compute(context) == NnErrno.INVALID_ARGUMENT
        assert probe.compute_single(context) == NnErrno.INVALID_ARGUMENT


def test_a_grammar_that_is_too_long(model: Model) -> None:
    with NnProbe(model.device, nn={"m": model}) as probe:
        answer(probe, probe.context(), NnErrno.TOO_LARGE, grammar="a" * (1 << 16))


def test_without_llguidance(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmetal.models.lm.grammar.find_spec", lambda name: None)
    with NnProbe(model.device, nn={"m": model}) as probe:
        answer(probe, probe.context(), NnErrno.UNSUPPORTED_OPERATION, grammar='root ::= "a"')
