"""Sampling from the largest logits, and generating with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guests.test_sampler import GUESTS
from tests.guests.test_sampler import Sampler as GuestSampler
from tests.guests.test_sampler import Sampling as GuestSampling
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest
from wasmetal.device import Device
from wasmetal.errors import ModelError, OutOfDeviceMemoryError
from wasmetal.models import Model, Session, TopLogits, load_model
from wasmetal.models.lm.multi_step import MOST_STEPS
from wasmetal.models.lm.pacing import SHARED, Pacing
from wasmetal.models.lm.sampling import Sampler, generate


@pytest.fixture(scope="module")
def guest() -> Iterator[GuestSampler]:
    with Guest(GUESTS / "sampler.wasm") as guest:
        yield GuestSampler(guest)


def largest(logits: np.ndarray, k: int) -> TopLogits:
    top = TopLogits(k)
    top.ids[:], top.values[:] = -1, -np.inf  # what a device gives where there are fewer
    order = np.argsort(-logits, kind="stable")[:k]
    top.ids[: order.size], top.values[: order.size] = order, logits[order]
    return top


@given(
    st.integers(1, 300),
    st.builds(
        GuestSampling,
        st.sampled_from([0.0, 0.1, 0.7, 3.0]),
        st.sampled_from([1, 2, 40, 64]),
        st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        st.sampled_from([0.0, 0.05, 0.5]),
        st.just(1.0),
        st.integers(0, 2**64 - 1),
    ),
)
def test_tokens_are_those_of_the_guests_sampler(guest: GuestSampler, n: int, sampling: GuestSampling) -> None:
    logits = 3 * np.random.default_rng(sampling.seed).standard_normal(n, dtype=np.float32)
    s = sampling
    sampler = Sampler(s.temperature, s.top_k, s.top_p, s.min_p, s.seed)
    guest.configure(sampling)
    for _ in range(4):
        assert sampler.choose(largest(logits, sampler.candidates)) == guest.sample(logits, [])


@pytest.mark.parametrize("values", [[-np.inf] * 3, [np.inf, 1, 0]])
def test_logits_that_are_not_finite(values: list[float]) -> None:
    assert Sampler(1.0, 3).choose(largest(np.array(values, np.float32), 3)) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"top_k": 0}, {"top_k": 65}, {"temperature": -1.0}, {"temperature": np.nan}, {"top_p": np.inf}, {"min_p": -0.1}],
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        Sampler(**wrong)


@pytest.fixture
def model(device: Device, tmp_path: Path) -> Iterator[Model]:
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf"), device, context=96, kv_type="f32") as model:
        yield model


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    logits, tokens = model.logits(), list(prompt)
    with model.session() as session:
        for _ in range(count):
            session.forward(tokens[session.length :], logits)
            tokens.append(int(logits.numpy().argmax()))
    return tokens[len(prompt) :]


def generated(model: Model, prompt: list[int], most: int, stops: tuple[int, ...] = ()) -> tuple[list[int], int]:
    """The tokens, and how many the session then has."""
    chosen: list[int] = []
    with model.session() as session:
        for submission in generate(session, prompt, Sampler(), most, stops, chosen):
            if submission is not None:
                submission.wait()
        return chosen, session.length


def test_greedy_generation(model: Model) -> None:
    expected = greedy(model, [5, 6, 7], 12)
    assert generated(model, [5, 6, 7], 12) == (expected, 3 + 11)
    stop = expected[4]
    until = expected.index(stop) + 1
    assert generated(model, [5, 6, 7], 12, (stop, 270)) == (expected[:until], 3 + until - 1)
    assert generated(model, [5, 6, 7], 1) == (expected[:1], 3)


def test_the_context_is_full(model: Model) -> None:
    chosen, length = generated(model, [5] * 90, 50)
    assert (len(chosen), length) == (7, 96)
    assert chosen == greedy(model, [5] * 90, 7)


def drive(steps: Iterator[Any]) -> None:
    for submission in steps:
        if submission is not None:
            submission.wait()


def with_own_sampler(session: Session, token: int, sampler: Sampler, count: int) -> list[int]:
    """What a guest does that chooses for itself: a call for each token."""
    top, chosen = TopLogits(sampler.candidates), []
    for _ in range(count):
        session.forward([token], top)
        token = sampler.choose(top)
        chosen.append(token)
    return chosen


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens in a submission as there can be, however slow the device is."""
    monkeypatch.setattr(Pacing, "steps", lambda _: MOST_STEPS)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_several_tokens_in_a_submission(model: Model, temperature: float) -> None:
    """Those of a call for each; across pages; with the pages, the session and the generator as they are then."""
    how = {"temperature": temperature, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 5}
    sampler, other = Sampler(**how), Sampler(**how)
    with model.session() as session, model.session() as plain:
        for each in (session, plain):
            each.forward(list(range(20)), None)
        expected = with_own_sampler(plain, 7, other, 40)
        chosen: list[int] = []
        before = model.batches.submitted
        drive(generate(session, [7], sampler, 40, (), chosen))
        assert model.batches.submitted - before == 2  # of 32 and 8 tokens
        assert (chosen, session.length, sampler.seed) == (expected, plain.length, other.seed)
        assert len(session.pages) == len(plain.pages)
        assert with_own_sampler(session, chosen[-1], sampler, 5) == with_own_sampler(plain, chosen[-1], other, 5)


@pytest.mark.usefixtures("at_once")
def test_a_stop_among_several(model: Model) -> None:
    """The session ends before it: what the device went on with is forgotten, its pages too."""
    with model.session() as session:
        session.forward(list(range(28)), None)
        with session.fork() as fork:
            sampler = Sampler(1.0, 64, seed=3)
            expected = with_own_sampler(fork, 7, sampler, 16)
        stop = next(token for token in expected[1:] if expected.index(token) < 3)
        end = expected.index(stop) + 1
        sampler, other, chosen = Sampler(1.0, 64, seed=3), Sampler(1.0, 64, seed=3), []
        drive(generate(session, [7], sampler, 16, {stop}, chosen))
        assert (chosen, session.length) == (expected[:end], 28 + end)
        assert len(session.pages) == -(-session.length // 32)
        other.advance(end)
        assert sampler.seed == other.seed


@pytest.mark.usefixtures("at_once")
def test_several_sequences_with_different_settings(model: Model) -> None:
    """At once, in the same submissions: each gets what it gets alone."""
    hows: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.5, "top_k": 64, "seed": 2},
        {"temperature": 0.8, "top_k": 3, "top_p": 0.7, "seed": 3},
        {"temperature": 2.0, "min_p": 0.3, "seed": 4},
    ]
    counts = [16, 3, 9, 16, 1]

    def run(number: int, barrier: threading.Barrier | None = None) -> list[int]:
        chosen: list[int] = []
        with model.session() as session:
            session.forward([number, 50, 60], None)
            if barrier:
                barrier.wait(60)
            drive(generate(session, [9], Sampler(**hows[number]), counts[number], (), chosen))
        return chosen

    alone = [run(number) for number in range(len(hows))]
    together = threading.Barrier(len(hows))
    with ThreadPoolExecutor(len(hows)) as threads:
        assert list(threads.map(lambda number: run(number, together), range(len(hows)))) == alone


@pytest.mark.usefixtures("at_once")
def test_pages_for_one_token_only(model: Model) -> None:
    """Where the cache has no room for several tokens, each is a submission, until there is none for that either."""
    with model.session() as session, model.session() as hoard:
        session.forward([1] * 31, None)
        hoard.forward([2] * 96, None)
        with model.session() as more:
            more.forward([2] * 64, None)
            chosen: list[int] = []
            with pytest.raises(OutOfDeviceMemoryError):
                drive(generate(session, [7], Sampler(), 5, (), chosen))
            assert (len(chosen), session.length) == (1, 32)
        drive(generate(session, chosen[-1:], Sampler(), 5, (), chosen))
    assert chosen == greedy(model, [*[1] * 31, 7], 5)


def test_tokens_of_a_submission_are_as_many_as_others_can_wait_for(model: Model) -> None:
    model._pacing.stepped(4, 4 * SHARED / 3.5)
    assert model._pacing.steps() == 3
    model._pacing.stepped(1, 10.0)
    assert model._pacing.steps() == 1
    model._pacing.stepped(1, 1e-6)
    assert model._pacing.steps() == MOST_STEPS
    model._pacing.stepped(1, 0.0)
    assert model._pacing.steps() == 1
