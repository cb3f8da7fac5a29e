"""Embedding models behind wasi-nn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.models.oracle import logits_of, relative_error, states_of
from tests.models.tiny import write_tiny_llama
from tests.models.tiny_bert import write_tiny_bert
from tests.nn.probe import OK, NnProbe
from wasmetal import Guest, load_embedder, load_model
from wasmetal.device import Device
from wasmetal.models.lm.heads import TopLogits
from wasmetal.models.lm.session import Request
from wasmetal.models.lm.states import State
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


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt-oss", "granite"])
@pytest.mark.parametrize("words", [1, 17, 100])
def test_a_language_model(cpu: Device, tmp_path: Path, architecture: str, words: int) -> None:
    """The mean of its states, against float64."""
    window = 4 if architecture in ("gemma3", "gpt-oss") else 0
    path = write_tiny_llama(tmp_path / "tiny.gguf", architecture=architecture, window=window)
    text = "the a b c world "[: 2 * words] * (words // 8 + 1)
    with load_model(path, cpu) as model, NnProbe(nn={"m": model}) as probe:
        context = probe.context(probe.graph(config=b'{"embedding": true, "temp": 0, "n-predict": 3}'))
        assert probe.compute(context) == NnErrno.INVALID_ARGUMENT
        for _ in range(2):
            assert probe.set(context, 0, text.encode()) == OK
            assert probe.compute(context) == OK
            found = json.loads(probe.output(context))
            tokens = model.tokenizer.encode(text)
            mean = states_of(path, tokens).mean(axis=0)
            assert found["n_embedding"] == len(mean)
            assert np.allclose(found["embedding"], mean / np.linalg.norm(mean), atol=1e-5)
            assert json.loads(probe.output(context, 1))["input_tokens"] == len(tokens)
        assert probe.compute_single(context) == NnErrno.UNSUPPORTED_OPERATION
        assert probe.set(context, 1, b'{"embedding": false}') == OK  # the context goes on with a text
        assert probe.compute(context) == OK
        assert json.loads(probe.output(context, 1))["output_tokens"] <= 3
        assert probe.set(context, 1, b'{"embedding": true, "ctx-size": 5}') == OK
        assert probe.compute(context) == (NnErrno.PROMPT_TOO_LONG if len(tokens) > 1 else OK)


def test_states_of_several_sessions(device: Device, tmp_path: Path) -> None:
    """In one submission with others, who want logits."""
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    first, second = [5, 6, 7, 8, 9], [10, 11, 12]
    with load_model(path, device) as model:
        one, two, three = (model.session() for _ in range(3))
        states, others, top = [State() for _ in first], [State() for _ in second[1:]], TopLogits(1)
        model.forward([Request(one, first, states), Request(two, first, top), Request(three, second, others)])
        assert relative_error(np.array([each.values for each in states]), states_of(path, first)) < 1e-2
        assert relative_error(np.array([each.values for each in others]), states_of(path, second)[1:]) < 1e-2
        assert top.ids[0] == np.argmax(logits_of(path, first)[-1])
        one.forward([30], [states[0]])
        assert relative_error(states[0].values, states_of(path, [*first, 30])[-1]) < 1e-2


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    nn_chat = Path(__file__).parents[2] / "guests" / "nn_chat.wasm"
    out: list[bytes] = []
    path = write_tiny_bert(tmp_path / "bert.gguf")
    with Guest(
        nn_chat, isolation="process", device="cpu", nn={"default": path}, args=["-p", "a b"], stdout=out.append
    ) as guest:
        assert guest.run() == 0
    assert json.loads(b"".join(out))["n_embedding"] == 96
