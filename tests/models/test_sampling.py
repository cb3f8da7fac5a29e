"""Sampling from the largest logits, and generating with it."""

from __future__ import annotations

from collections.abc import Iterator
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
from wasmetal.errors import ModelError
from wasmetal.models import Model, TopLogits, load_model
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
