"""Embedding models behind wasi-nn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from tests.nn.probe import OK, NnProbe
from wasmetal import Guest, load_embedder
from wasmetal.device import Device
from wasmetal.nn.errors import NnErrno

TEXT = "a b the world"


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "by path"])
def test_a_vector(cpu: Device, tmp_path: Path, loaded: bool) -> None:
    path = write_tiny_bert(tmp_path / "bert.gguf")
    with load_embedder(path, cpu) as model:
        expected = model.embed([TEXT])[0]
        with NnProbe(cpu, nn={"m": model if loaded else path}) as probe:
            context = probe.context(probe.graph(config=b'{"embedding": true}'))
            assert probe.compute(context) == NnErrno.INVALID_ARGUMENT
            assert probe.set(context, 0, TEXT.encode()) == OK
            assert json.loads(probe.output(context, 1))["input_tokens"] == len(model.tokenizer.encode(TEXT)) + 1
            assert probe.output(context) == b""
            assert probe.compute(context) == OK
            found = json.loads(probe.output(context))
            assert found["n_embedding"] == len(found["embedding"]) == model.dimension
            assert np.allclose(found["embedding"], expected, atol=1e-6)
            assert abs(np.linalg.norm(found["embedding"]) - 1) < 1e-6
            assert probe.set(context, 1, b'{"image": "x"}') == NnErrno.UNSUPPORTED_OPERATION
            for function in (probe.compute_single, probe.fini_single):
                assert function(context) == NnErrno.UNSUPPORTED_OPERATION
            assert probe.get_output_single(context, 0, probe.ROOM, 9, probe.OUT) == NnErrno.UNSUPPORTED_OPERATION
            assert probe.get_output(context, 2, probe.ROOM, 9, probe.OUT) == NnErrno.INVALID_ARGUMENT
            assert probe.set(context, 0, b"a " * 200) == OK
            assert probe.compute(context) == NnErrno.PROMPT_TOO_LONG


def test_a_language_model_gives_none(cpu: Device, tmp_path: Path) -> None:
    with NnProbe(cpu, nn={"m": write_tiny_llama(tmp_path / "tiny.gguf")}) as probe:
        context = probe.context(probe.graph(config=b'{"embedding": true}'))
        assert probe.set(context, 0, b"hello") == OK
        assert probe.compute(context) == NnErrno.UNSUPPORTED_OPERATION


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    nn_chat = Path(__file__).parents[2] / "guests" / "nn_chat.wasm"
    out: list[bytes] = []
    path = write_tiny_bert(tmp_path / "bert.gguf")
    with Guest(
        nn_chat, isolation="process", device="cpu", nn={"default": path}, args=["-p", "a b"], stdout=out.append
    ) as guest:
        assert guest.run() == 0
    assert json.loads(b"".join(out))["n_embedding"] == 96
