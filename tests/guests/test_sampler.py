"""The chat guest's sampler, as WebAssembly, against NumPy."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmetal import Guest
from wasmetal.host.runtime import runtime

GUESTS = Path(__file__).parents[2] / "guests"
MASK = 2**64 - 1


@dataclass
class Sampling:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0


class Sampler:
    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._place = guest.call("allocate", 1 << 20)
        memory: Any = guest._instance.exports(guest._store)["memory"]
        region = runtime().creator.region_at(ctypes.addressof(memory.data_ptr(guest._store).contents))
        self._bytes = region.view()[self._place : self._place + (1 << 20)]

    def configure(self, sampling: Sampling) -> None:
        *rest, seed = astuple(sampling)
        self._guest.call("configure", *rest, (seed + 2**63) % 2**64 - 2**63)

    def sample(self, logits: np.ndarray, recent: list[int]) -> int:
        self._bytes[: logits.nbytes] = logits.view(np.uint8)
        scratch, recent_at = 1 << 18, 1 << 19
        tokens = np.array(recent, np.uint32)
        self._bytes[recent_at : recent_at + tokens.nbytes] = tokens.view(np.uint8)
        at = self._place
        return int(self._guest.call("sample", at, logits.size, at + scratch, at + recent_at, len(recent)))


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with Guest(GUESTS / "sampler.wasm") as guest:
        yield Sampler(guest)


def splitmix64(state: int) -> tuple[int, float]:
    """The next state, and a number in [0, 1). From the algorithm's publication."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, ((z ^ (z >> 31)) >> 11) / 2**53


def distribution(logits: np.ndarray, s: Sampling, recent: list[int]) -> np.ndarray:
    """Probabilities, by sorting everything: penalty, temperature, top-k, top-p, min-p."""
    x = logits.astype(np.float64)
    x[np.isnan(x)] = -np.inf
    for token in {t for t in recent if t < x.size}:
        x[token] = x[token] / s.repeat_penalty if x[token] > 0 else x[token] * s.repeat_penalty
    if s.temperature == 0 or not np.isfinite(x.max()):
        return np.eye(x.size)[np.argmax(x)]
    order = np.argsort(-x, kind="stable")
    weights = np.exp((x[order] - x[order][0]) / s.temperature)
    if s.top_k:
        weights[s.top_k :] = 0
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    weights[1:][before[1:] >= s.top_p] = 0
    weights[1:][weights[1:] < s.min_p * weights[0]] = 0
    result = np.zeros(x.size)
    result[order] = weights / weights.sum()
    return result


@given(
    st.integers(1, 300),
    st.builds(
        Sampling,
        st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
        st.sampled_from([0, 1, 2, 40, 1000]),
        st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        st.sampled_from([1.0, 1.3, 0.5]),
        st.integers(0, MASK),
    ),
    st.lists(st.integers(0, 310), max_size=64),
    st.integers(0, 2**32 - 1),
)
def test_every_token_is_the_one_that_numpy_draws(
    sampler: Sampler, n: int, sampling: Sampling, recent: list[int], seed: int
) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal(n, dtype=np.float32)
    expected = distribution(logits, sampling, recent)
    sampler.configure(sampling)
    state = sampling.seed
    order = np.argsort(-expected, kind="stable")
    cumulative = np.cumsum(expected[order])
    for _ in range(5):
        token = sampler.sample(logits.copy(), recent)
        if sampling.temperature == 0:
            assert token == order[0]
            continue
        state, drawn = splitmix64(state)
        # The guest computes in float32: a draw within rounding of a boundary may fall to either side.
        low = order[min(np.searchsorted(cumulative, drawn - 1e-5, side="right"), n - 1)]
        high = order[min(np.searchsorted(cumulative, drawn + 1e-5, side="right"), n - 1)]
        near = np.isclose(expected, expected[token], rtol=1e-4).sum() > 1
        assert token in (low, high) or near


def test_tokens_come_as_often_as_they_are_likely(sampler: Sampler) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler.configure(Sampling(seed=1))
    counts = np.bincount([sampler.sample(logits.copy(), []) for _ in range(2000)], minlength=4)
    np.testing.assert_allclose(counts / 2000, [0.5, 0.3, 0.15, 0.05], atol=0.04)


def test_the_seed_decides(sampler: Sampler) -> None:
    logits = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)

    def draw(seed: int) -> list[int]:
        sampler.configure(Sampling(seed=seed))
        return [sampler.sample(logits.copy(), []) for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_odd_logits(sampler: Sampler, temperature: float) -> None:
    nan, inf = np.nan, np.inf
    for logits, expected in (
        ([nan, 1.0, nan], 1),
        ([nan, nan], 0),
        ([-inf, -inf, -inf], 0),
        ([0.0, inf, 5.0], 1),
        ([-inf, 3.0, -inf], 1),
        ([7.0], 0),
        ([-1e30, 1e30, 0.0], 1),
    ):
        sampler.configure(Sampling(temperature=temperature))
        assert sampler.sample(np.array(logits, np.float32), [0]) == expected


def test_a_whole_vocabulary(sampler: Sampler) -> None:
    logits = np.random.default_rng(0).standard_normal(49152, dtype=np.float32)
    for sampling in (Sampling(top_k=1), Sampling(top_p=0.0), Sampling(min_p=1.0), Sampling(temperature=0.0)):
        sampler.configure(sampling)
        assert sampler.sample(logits.copy(), []) == logits.argmax()


@given(
    st.integers(1, 300),
    st.integers(1, 64),
    st.sampled_from([0.0, 0.1, 0.7, 3.0]),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05]),
    st.integers(0, MASK),
    st.booleans(),
)
def test_the_likeliest_are_enough(
    sampler: Sampler, n: int, k: int, temperature: float, top_p: float, min_p: float, seed: int, ties: bool
) -> None:
    """Of the k largest logits, as a device finds them, the token that is drawn of all of them with a top-k of k."""
    logits = 3 * np.random.default_rng(seed).standard_normal(n, dtype=np.float32)
    if ties:
        logits = np.round(logits)
    likeliest = np.argsort(-logits, kind="stable")[:k]
    sampler.configure(Sampling(temperature, k, top_p, min_p, seed=seed))
    expected = [sampler.sample(logits, []) for _ in range(5)]
    sampler.configure(Sampling(temperature, k, top_p, min_p, seed=seed))
    assert [likeliest[sampler.sample(logits[likeliest], [])] for _ in range(5)] == expected
