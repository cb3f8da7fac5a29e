"""Several sessions in one forward pass: prompts beside decoding, each with the logits that it has alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.device.conftest import open_as_discrete
from tests.models.oracle import logits_of, relative_error
from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.models import Model, Request, Session, load_model
from wasmetal.models.lm.passes import SEQUENCES

TOLERANCE = 1e-5
"""Relative error of float32 against float64, over two layers."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("batch") / "tiny.gguf", qtype="Q8_0", context=1200)


def tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(4, 270, count).tolist()


def forward(model: Model, work: list[tuple[Session, list[int]]]) -> list[NDArray[np.float32]]:
    """The logits of each session after one batch."""
    places = [model.logits() for _ in work]
    model.forward([Request(session, some, place) for (session, some), place in zip(work, places, strict=True)])
    return [place.numpy().copy() for place in places]


@pytest.mark.vulkan
@pytest.mark.parametrize("counts", [(1,), (3, 70, 1), (64, 1, 512)])
def test_on_a_device_with_memory_of_its_own(vulkan: Device, path: Path, counts: tuple[int, ...]) -> None:
    """Which gets the inputs of each pass in one copy; batches of all sizes, and of rows that change."""
    texts = [tokens(count + 4, seed) for seed, count in enumerate(counts)]
    expected = [logits_of(path, text) for text in texts]
    device = open_as_discrete()
    device.backend.info = replace(device.info, unified=False)
    with device, load_model(path, device, kv_type="f32") as model:
        sessions = [model.session() for _ in texts]
        done = [0] * len(texts)
        for ends in (counts, [count + 1 for count in counts], [count + 4 for count in counts]):
            work = [(s, text[begin:end]) for s, text, begin, end in zip(sessions, texts, done, ends, strict=True)]
            for got, want, end in zip(forward(model, work), expected, ends, strict=True):
                assert relative_error(got, want[end - 1]) < TOLERANCE
            done = list(ends)


def test_prompts_beside_decoding(device: Device, path: Path) -> None:
    texts = [tokens(40, 1), tokens(33, 2), tokens(70, 3), tokens(2, 4)]
    expected = [logits_of(path, text) for text in texts]
    with load_model(path, device, kv_type="f32") as model:
        one, two, three, four = (model.session() for _ in texts)
        one.forward(texts[0][:38], None)
        two.forward(texts[1][:32], None)
        # One decodes, two writes the first token of a page, three and four begin.
        work = [(one, texts[0][38:39]), (two, texts[1][32:]), (three, texts[2][:50]), (four, texts[3][:1])]
        got = forward(model, work)
        for logits, want in zip(got, (expected[0][38], expected[1][32], expected[2][49], expected[3][0]), strict=True):
            assert relative_error(logits, want) < TOLERANCE
        # Three goes on with its prompt while one and four decode.
        got = forward(model, [(three, texts[2][50:]), (one, texts[0][39:]), (four, texts[3][1:])])
        for logits, want in zip(got, (expected[2][-1], expected[0][-1], expected[3][-1]), strict=True):
            assert relative_error(logits, want) < TOLERANCE
        assert [session.length for session in (one, two, three, four)] == [40, 33, 70, 2]


def test_a_batch_is_one_submission(device: Device, path: Path) -> None:
    with load_model(path, device, kv_type="f32") as model:
        sessions = [model.session() for _ in range(5)]
        before = device.counters.submits
        model.forward([Request(session, tokens(3, i)) for i, session in enumerate(sessions)])
        assert device.counters.submits == before + 1


@settings(max_examples=3)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4), forks=st.booleans())
@example(lengths=[300, 200, 100], forks=True)
def test_any_batch(device: Device, path: Path, lengths: list[int], forks: bool) -> None:
    """Batches of more rows than a submission takes, of sessions that share pages and of sessions that do not."""
    start = tokens(45, 0)
    texts = [tokens(length, length) for length in lengths]
    with load_model(path, device, kv_type="f32") as model:
        parent = model.session()
        parent.forward(start, None)
        sessions = [parent.fork() if forks else model.session() for _ in texts]
        for logits, text in zip(forward(model, list(zip(sessions, texts, strict=True))), texts, strict=True):
            assert relative_error(logits, logits_of(path, (start if forks else []) + text)[-1]) < TOLERANCE


def test_more_sessions_than_a_submission_takes(cpu: Device, path: Path) -> None:
    with load_model(path, cpu) as model:
        work = [(model.session(), [4 + i]) for i in range(SEQUENCES + 3)]
        for i, logits in enumerate(forward(model, work)):
            assert relative_error(logits, logits_of(path, [4 + i])[-1]) < TOLERANCE


def test_refused_whole(device: Device, path: Path) -> None:
    """A batch in which one request cannot be met changes no session."""
    with load_model(path, device, kv_type="f32") as model, load_model(path, device) as other:
        good, bad = model.session(), model.session()
        good.forward([5, 6, 7], None)
        free = model.cache.free
        for wrong in (
            Request(bad, []),
            Request(bad, [model.vocab_size]),
            Request(bad, [4] * (model.context_length + 1)),
            Request(good, [4]),
            Request(other.session(), [4]),
        ):
            with pytest.raises(ModelError):
                model.forward([Request(good, [8]), wrong])
        hoard = [model.session() for _ in range(3)]
        with pytest.raises(OutOfDeviceMemoryError):
            model.forward([Request(good, [8]), *(Request(session, [4] * 1100) for session in hoard)])
        assert (good.length, bad.length, model.cache.free) == (3, 0, free)
        bad.close()
        with pytest.raises(ModelError):
            model.forward([Request(good, [8]), Request(bad, [4])])
        assert relative_error(forward(model, [(good, [8])])[0], logits_of(path, [5, 6, 7, 8])[-1]) < TOLERANCE
