"""Language models behind wasi-nn, on a tiny random model; expected texts come from sessions driven here."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.tiny import write_tiny_llama
from tests.nn.probe import OK, NnProbe
from wasmetal import Limits, NnModel, load_model
from wasmetal.device import Device
from wasmetal.errors import GuestError, LimitError
from wasmetal.models.lm.model import Model
from wasmetal.models.lm.session import Session
from wasmetal.nn.errors import NnErrno
from wasmetal.nn.ggml.options import PATHS

BAD, END, FULL, LONG = (
    NnErrno.INVALID_ARGUMENT,
    NnErrno.END_OF_SEQUENCE,
    NnErrno.CONTEXT_FULL,
    NnErrno.PROMPT_TOO_LONG,
)
PROMPT = b"hello world, the"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=128)


@pytest.fixture(scope="module")
def model(cpu: Device, path: Path) -> Iterator[Model]:
    with load_model(path, cpu) as model:
        yield model


def granted(model: Any, **options: Any) -> NnProbe:
    """A guest with the model, which answers with the likeliest tokens and never ends by itself."""
    return NnProbe(model.device, nn={"m": NnModel(model, {"temp": 0, "n-predict": 12} | options)})


def greedy(model: Model, prompt: bytes, count: int, penalty: float = 1, present: float = 0, often: float = 0) -> bytes:
    """What the model goes on with, by all of its logits."""
    logits, text = model.logits(), b""
    tokens = model.tokenizer.encode(prompt.decode())
    said, new = list(tokens), tokens
    with model.session() as session:
        for _ in range(count):
            session.forward(new, logits)
            values = logits.numpy().astype(np.float64)
            for token in set(said[-64:]):
                values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
                values[token] -= present + often * said[-64:].count(token)
            new = [int(values.argmax())]
            if new[0] in model.tokenizer.end_of_generation:
                break
            said += new
            text += model.tokenizer.pieces()[new[0]]
    return text


def answer(probe: NnProbe, context: int, prompt: bytes = PROMPT, errno: NnErrno = OK) -> bytes:
    assert probe.set(context, 0, prompt) == OK
    assert probe.compute(context) == errno
    return probe.output(context)


def test_compute_gives_the_likeliest_text(model: Model) -> None:
    with granted(model) as probe:
        assert answer(probe, probe.context()) == greedy(model, PROMPT, 12)
        assert probe.guest.counters.bytes_copied == 0


def test_token_by_token(model: Model) -> None:
    with granted(model) as probe:
        context = probe.context()
        assert probe.set(context, 0, PROMPT) == OK
        pieces = []
        while (errno := probe.compute_single(context)) == OK:
            pieces.append(probe.output(context, single=True))
            assert probe.output(context) == b"".join(pieces)
        assert errno == END
        assert probe.compute_single(context) == END
        assert len(pieces) == 12
        assert b"".join(pieces) == greedy(model, PROMPT, 12)
        assert probe.fini_single(context) == OK
        assert probe.output(context) == b""
        assert probe.compute_single(context) == OK  # from the beginning
        assert probe.output(context, single=True) == pieces[0]
        assert answer(probe, context, b"in") == greedy(model, b"in", 12)


def test_metadata(model: Model) -> None:
    with granted(model) as probe:
        context = probe.context()
        assert probe.set(context, 0, PROMPT) == OK
        count = len(model.tokenizer.encode(PROMPT.decode()))
        known = json.loads(probe.output(context, 1))
        assert (known["input_tokens"], known["output_tokens"]) == (count, 0)
        assert isinstance(known["llama_build_number"], int)
        assert isinstance(known["llama_commit"], str)
        assert probe.compute(context) == OK
        assert json.loads(probe.output(context, 1))["output_tokens"] == 12
        assert json.loads(probe.output(context, 1, single=True))["output_tokens"] == 12


def test_a_prompts_shape_may_be_untrue(model: Model) -> None:
    with granted(model) as probe:
        context = probe.context()
        probe.put(probe.DATA, PROMPT)
        for shape, number in (((1,), 2), ((1,), 3), ((), 0), ((4, 2**32 - 1), 255)):
            assert probe.set_input(context, 0, probe.record(probe.DATA, len(PROMPT), shape, number)) == OK
            assert probe.compute(context) == OK
            assert probe.output(context) == greedy(model, PROMPT, 12)


def test_a_common_beginning_is_not_computed_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    appended: list[int] = []
    steps = Session.steps
    monkeypatch.setattr(
        Session, "steps", lambda self, new, logits: appended.append(len(new)) or steps(self, new, logits)
    )
    one, other = PROMPT * 3, PROMPT * 3 + b" a"
    lengths = [len(model.tokenizer.encode(each.decode())) for each in (one, other)]
    with granted(model) as probe:
        context = probe.context()
        answers = []
        for prompt in (one, other, other, b"or" + one, b"or"):
            answers.append(answer(probe, context, prompt))
        assert probe.set(context, 0, one) == OK
    assert appended[0] == lengths[0]
    assert appended[12] == lengths[1] - lengths[0]
    assert appended[24] == 1  # for the logits
    assert appended[36] > lengths[0]
    assert appended[48] == 1
    assert answers == [greedy(model, prompt, 12) for prompt in (one, other, other, b"or" + one, b"or")]


def test_contexts_are_apart(model: Model) -> None:
    with granted(model) as probe:
        one, other = probe.context(), probe.context()
        probe.set(one, 0, PROMPT)
        probe.set(other, 0, b"in")
        for context in (one, other) * 3:
            assert probe.compute_single(context) == OK
        assert probe.output(one) == greedy(model, PROMPT, 3)
        assert probe.output(other) == greedy(model, b"in", 3)
        assert probe.unload(probe.graph()) == OK
        assert probe.output(one) == greedy(model, PROMPT, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"repeat-penalty": 1.5}, (1.5, 0, 0)),
        ({"repeat-penalty": 1.1, "presence-penalty": 0.5}, (1.1, 0.5, 0)),
        ({"frequency-penalty": 0.7}, (1, 0, 0.7)),
    ],
)
def test_penalties(model: Model, options: dict[str, float], expected: tuple[float, float, float]) -> None:
    with granted(model, **options) as probe:
        text = answer(probe, probe.context())
        assert text == greedy(model, PROMPT, 12, *expected)
        assert text != greedy(model, PROMPT, 12)
        assert probe.guest.counters.bytes_copied == 0


def test_options_at_every_place(model: Model) -> None:
    with granted(model) as probe:
        graph = probe.graph()
        for config, count in ((b'{"n-predict": 3}', 3), (b'{"n-predict": 5, "unknown": [1]}', 5)):
            assert probe.graph(config=config) == graph
            assert answer(probe, probe.context(graph)) == greedy(model, PROMPT, count)
        context = probe.context(graph)
        assert probe.set(context, 1, b'{"n-predict": 2, "n-gpu-layers": 99}') == OK
        assert answer(probe, context) == greedy(model, PROMPT, 2)
        assert answer(probe, probe.context(graph)) == greedy(model, PROMPT, 5)
        assert probe.set(context, 1, b'{"n-predict": 0}') == OK
        assert answer(probe, context) == b""


@pytest.mark.parametrize(
    ("text", "errno"),
    [
        (b"not json", NnErrno.INVALID_ENCODING),
        (b"[1]", BAD),
        (b'{"temp": "hot"}', BAD),
        (b'{"temp": true}', BAD),
        (b'{"temp": NaN}', BAD),
        (b'{"temp": 1e400}', BAD),
        (b'{"n-predict": 1.5}', BAD),
        (b'{"n-predict": true}', BAD),
        (b'{"stream-stdout": 1}', BAD),
        (b'{"reverse-prompt": ["a"]}', BAD),
        (b'{"n-gpu-layers": "all"}', BAD),
        (b'{"unknown": {"x": [1]}}', OK),
        *((f'{{"{name}": "x"}}'.encode(), NnErrno.UNSUPPORTED_OPERATION) for name in sorted(PATHS)),
    ],
)
def test_wrong_options(model: Model, text: bytes, errno: NnErrno) -> None:
    with granted(model) as probe:
        context = probe.context()
        assert probe.set(context, 1, text) == errno
        probe.put(probe.TEXT, b"m" + text)
        assert probe.load_by_name_with_config(probe.TEXT, 1, probe.TEXT + 1, len(text), probe.OUT) == errno
        assert answer(probe, context) == greedy(model, PROMPT, 12)


@pytest.mark.parametrize(
    "options", [{"top-p": -1}, {"min-p": -0.5}, {"repeat-penalty": 0}, {"repeat-penalty": -1}], ids=str
)
def test_numbers_out_of_range(model: Model, options: dict[str, float]) -> None:
    with granted(model, **options) as probe:
        context = probe.context()
        assert probe.set(context, 0, PROMPT) == OK
        assert probe.compute(context) == BAD
        assert probe.compute_single(context) == BAD


def test_sampling_is_repeatable(model: Model) -> None:
    def sample(seed: int, **options: Any) -> bytes:
        with granted(model, temp=1.5, seed=seed, **options) as probe:
            return answer(probe, probe.context())

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(4)}) > 1
    assert sample(7, **{"top-k": 1}) == greedy(model, PROMPT, 12)
    assert sample(7, **{"top-k": 10_000}) == sample(7, **{"top-k": 0})
    assert sample(7, **{"repeat-penalty": 1.2, "top-k": 1}) == greedy(model, PROMPT, 12, 1.2)


def test_a_reverse_prompt_ends_the_text(model: Model) -> None:
    prompt, ending = next(
        (prompt, whole[i : i + 1])
        for prompt in (bytes([letter]) for letter in range(ord("a"), ord("z")))
        for whole in [greedy(model, prompt, 12)]
        for i in range(1, len(whole))
        if whole[i] < 128 and whole.index(whole[i]) == i
    )
    with granted(model, **{"reverse-prompt": ending.decode()}) as probe:
        text = answer(probe, probe.context(), prompt)
    assert greedy(model, prompt, 12).startswith(text)
    assert len(text) > 1
    assert text.count(ending) == 1


def test_the_context(model: Model) -> None:
    tokens = len(model.tokenizer.encode(PROMPT.decode()))
    size = tokens + 4
    with granted(model, **{"n-predict": -1, "ctx-size": size}) as probe:
        context = probe.context()
        text = answer(probe, context, errno=FULL)
        assert text == greedy(model, PROMPT, 5)  # the fifth token has no place any more, but is known
        assert probe.set(context, 0, PROMPT + b"!") == OK
        assert probe.compute(context) == LONG
        assert probe.compute_single(context) == LONG
        assert probe.set(context, 0, PROMPT) == OK
        errnos = [probe.compute_single(context) for _ in range(7)]
        assert errnos == [OK] * 5 + [FULL, END]
        assert probe.output(context) == text
    with granted(model, **{"n-predict": -1}) as probe:
        answer(probe, probe.context(), errno=FULL)


def test_calls_out_of_order(model: Model) -> None:
    with granted(model) as probe:
        context = probe.context()
        assert probe.compute(context) == BAD
        assert probe.compute_single(context) == BAD
        assert probe.fini_single(context) == OK
        assert probe.output(context) == b""
        assert probe.output(context, single=True) == b""
        assert json.loads(probe.output(context, 1))["input_tokens"] == 0
        assert probe.set(context, 2, b"x") == BAD
        assert probe.get_output(context, 2, probe.ROOM, 9, probe.OUT) == BAD
        assert probe.get_output_single(context, 2, probe.ROOM, 9, probe.OUT) == BAD
        assert probe.set(context, 0, b"") == BAD
        assert probe.compute(context) == BAD
        tensor = probe.record(probe.DATA, 1, (1,), 3)
        assert probe.bind_input(context, 0, tensor) == NnErrno.UNSUPPORTED_OPERATION
        assert probe.bind_output(context, 0, tensor) == NnErrno.UNSUPPORTED_OPERATION


def test_bytes_that_are_not_utf8_and_prompts_that_are_too_long(model: Model) -> None:
    with granted(model) as probe:
        context = probe.context()
        answer(probe, context, b"\xff\xc3 h\0")
        assert probe.set_input(context, 0, probe.record(0, (1 << 18) + 1, (1,), 3)) == NnErrno.TOO_LARGE


def test_text_goes_to_standard_output(model: Model) -> None:
    pieces: list[bytes] = []
    grants = {"m": NnModel(model, {"temp": 0, "n-predict": 6, "stream-stdout": True})}
    with NnProbe(model.device, nn=grants, stdout=pieces.append) as probe:
        text = answer(probe, probe.context())
    assert len(pieces) == 6
    assert b"".join(pieces) == text


def test_a_model_is_loaded_from_its_file_when_it_is_asked_for(path: Path, model: Model, tmp_path: Path) -> None:
    later = tmp_path / "later.gguf"
    with NnProbe("cpu", nn={"m": path, "later": later, "damaged": tmp_path / "damaged"}) as probe:
        (tmp_path / "damaged").write_bytes(b"GGUF" + bytes(100))
        assert probe.guest.counters.bytes_loaded == 0
        graph = probe.graph(config=b'{"temp": 0, "n-predict": 4}')
        assert answer(probe, probe.context(graph)) == greedy(model, PROMPT, 4)
        for name, errno in ((b"later", NnErrno.MODEL_NOT_FOUND), (b"damaged", NnErrno.INVALID_ENCODING)):
            assert probe.load_by_name(probe.TEXT, probe.put(probe.TEXT, name), probe.OUT) == errno
        later.write_bytes(path.read_bytes())
        probe.graph("later")


@pytest.mark.parametrize("options", [{"temp": "hot"}, {"image": "x.png"}], ids=str)
def test_wrong_options_of_a_grant(model: Model, options: dict[str, Any]) -> None:
    with pytest.raises(GuestError, match=r"option '(temp|image)'"):
        NnProbe(model.device, nn={"m": NnModel(model, options)})


def test_the_wall_limit_ends_an_answer(model: Model) -> None:
    limits = Limits(wall_seconds=0.2)
    grants = {"m": NnModel(model, {"temp": 0, "n-predict": 100})}
    with NnProbe(model.device, nn=grants, limits=limits) as probe:

        def endless() -> None:
            context = probe.context()
            give_up = time.monotonic() + 60
            while time.monotonic() < give_up:
                answer(probe, context)

        with pytest.raises(LimitError, match="wall time"):
            probe.enter(endless)


def test_pages_of_the_cache_are_charged(model: Model) -> None:
    limits = Limits(device_bytes=model.cache.position_bytes)
    with NnProbe(model.device, nn={"m": model}, limits=limits) as probe:
        context = probe.context()
        assert probe.set(context, 0, PROMPT) == OK
        assert probe.compute(context) == NnErrno.TOO_LARGE
        assert probe.compute_single(context) == NnErrno.TOO_LARGE


def test_everything_is_given_back(model: Model) -> None:
    with granted(model, **{"repeat-penalty": 1.1}) as probe:
        graph = probe.graph()
        contexts = [probe.context(graph) for _ in range(2)]
        for context in contexts:
            probe.set(context, 0, PROMPT)
            assert probe.compute_single(context) == OK
        assert probe.guest._account.device_bytes > 0
        assert probe.finalize_execution_context(contexts[0]) == OK
        assert probe.unload(graph) == OK
        assert probe.guest._account.device_bytes == 0


def test_the_distribution(model: Model) -> None:
    """With a temperature of 1 and no filters but the 64 largest, tokens come as often as they are likely."""
    logits = model.logits()
    with model.session() as session:
        session.forward(model.tokenizer.encode(PROMPT.decode()), logits)
    values = logits.numpy().astype(np.float64)
    largest = np.sort(values)[-64:]
    likely = int(values.argmax())
    chance = math.exp(values[likely] - values.max()) / np.exp(largest - values.max()).sum()
    expected = model.tokenizer.pieces()[likely]
    options = {"temp": 1.0, "top-k": 64, "top-p": 1.0, "min-p": 0.0, "n-predict": 1}
    with NnProbe(model.device, nn={"m": NnModel(model, options)}) as probe:
        context = probe.context()

        def count() -> int:
            return sum(answer(probe, context) == expected for _ in range(400))

        hits = probe.enter(count)
    assert abs(hits - 400 * chance) < 5 * math.sqrt(400 * chance * (1 - chance)) + 1
