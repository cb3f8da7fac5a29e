"""The C library's speculative decoding, as WebAssembly, against NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.guests.test_sampler import GUESTS, Sampler, Sampling, distribution
from wasmetal import Guest

DRAWS = 40_000
SLOT = 1 << 18
"""Bytes for each array of a call, in the guest's memory."""


class Probe(Sampler):
    """The library's functions."""

    def _put(self, *arrays: NDArray[Any]) -> list[int]:
        for slot, array in enumerate(arrays):
            self._bytes[slot * SLOT : slot * SLOT + array.nbytes] = array.view(np.uint8)
        return [self._place + slot * SLOT for slot in range(4)]

    def _taken(self, slot: int, count: int, dtype: type) -> NDArray[Any]:
        return self._bytes[slot * SLOT :][: count * np.dtype(dtype).itemsize].view(dtype).copy()

    def lookup(self, tokens: list[int], longest: int, most: int) -> list[int]:
        places = self._put(np.array(tokens, np.uint32))
        count = self._guest.call("lookup", places[0], len(tokens), longest, places[1], most)
        return [int(token) for token in self._taken(1, count, np.uint32)]

    def distribution(self, logits: np.ndarray, recent: list[int]) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
        at = self._put(logits, np.empty(0, np.uint32), np.empty(0), np.array(recent, np.uint32))
        count = self._guest.call("distribution", at[0], logits.size, at[1], at[2], at[3], len(recent))
        return self._taken(1, count, np.uint32), self._taken(2, count, np.float64)

    def speculate(self, target: NDArray[np.float64], draft: NDArray[np.float64]) -> tuple[NDArray[np.uint32], int]:
        """DRAWS tokens, and how many of them were accepted. The likeliest of each distribution come first."""
        (p, q), half = (np.argsort(-of, kind="stable")[: np.count_nonzero(of)] for of in (target, draft)), SLOT // 2
        at = self._put(
            np.concatenate([p.astype(np.uint32), np.zeros(half // 4 - p.size, np.uint32), q.astype(np.uint32)]),
            np.concatenate([target[p], np.zeros(half // 8 - p.size), draft[q]]),
        )
        accepted = self._guest.call("speculate", at[0], at[1], p.size, at[0] + half, at[1] + half, q.size, at[2], DRAWS)
        return self._taken(2, DRAWS, np.uint32), int(accepted)


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with Guest(GUESTS / "sampler.wasm") as guest:
        yield Probe(guest)


def found(tokens: list[int], longest: int, most: int) -> list[int]:
    """What a lookup gives, from its definition."""
    n = len(tokens)
    for length in range(min(longest, n), 0, -1):
        ends = [end for end in range(length, n) if tokens[end - length : end] == tokens[n - length :]]
        if ends:
            said = list(tokens)
            for i in range(most):
                said.append(said[ends[-1] + i])
            return said[n:]
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 5), st.integers(0, 15))
def test_a_lookup_gives_what_followed(probe: Probe, tokens: list[int], longest: int, most: int) -> None:
    assert probe.lookup(tokens, longest, most) == found(tokens, longest, most)


def test_lookups_worked_by_hand(probe: Probe) -> None:
    assert probe.lookup([1, 2, 3, 4, 9, 2, 3], 3, 2) == [4, 9]
    assert probe.lookup([1, 2, 3, 4, 9, 2, 3], 3, 6) == [4, 9, 2, 3, 4, 9]
    assert probe.lookup([1, 2, 5, 3, 2, 6, 1, 2], 3, 1) == [5]  # two the same, not the later one
    assert probe.lookup([1, 2, 5, 3, 2, 6, 1, 2], 1, 1) == [6]
    assert probe.lookup([7, 7], 3, 3) == [7, 7, 7]
    for nothing in ([], [1], [1, 2, 3]):
        assert probe.lookup(nothing, 3, 4) == []


def test_the_distribution_is_what_numpy_makes_of_the_logits(probe: Probe) -> None:
    settings = product([0.0, 0.7, 3.0], [0, 1, 40, 1000], [0.0, 0.9, 1.0], [0.0, 0.05], [1.0, 1.3])
    for seed, (temperature, top_k, top_p, min_p, penalty) in enumerate(settings):
        rng = np.random.default_rng(seed)
        logits = 3 * rng.standard_normal(int(rng.integers(1, 300)), dtype=np.float32)
        recent = rng.integers(0, 310, 20).tolist()
        sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
        expected = distribution(logits, sampling, recent)
        probe.configure(sampling)
        ids, probabilities = probe.distribution(logits, recent)
        assert len({*ids.tolist()}) == len(ids)
        assert (np.diff(probabilities) <= 0).all()
        given = np.zeros(logits.size)
        given[ids] = probabilities
        np.testing.assert_allclose(given, expected, atol=1e-5)
        assert ids[0] == np.argmax(expected)


def random_distribution(rng: np.random.Generator, tokens: int, kept: int) -> NDArray[np.float64]:
    result = np.zeros(tokens)
    result[rng.permutation(tokens)[:kept]] = rng.dirichlet(np.ones(kept))
    return result


def one(token: int) -> NDArray[np.float64]:
    return np.eye(8)[token]


PAIRS = {
    "the same": [(random_distribution(np.random.default_rng(seed), 8, 6),) * 2 for seed in range(3)],
    "others": [
        tuple(random_distribution(np.random.default_rng([seed, i]), 8, kept) for i, kept in enumerate((5, 4)))
        for seed in range(8)
    ],
    "of a draft without probabilities": [
        (random_distribution(np.random.default_rng(seed), 8, 5), one(seed)) for seed in range(8)
    ],
    "of a certain target": [(one(seed), random_distribution(np.random.default_rng(seed), 8, 5)) for seed in range(8)],
    "certain": [(one(1), one(1)), (one(1), one(2))],
    "without a token in common": [(np.array([0.7, 0.3, 0, 0, 0]), np.array([0, 0, 0.1, 0.5, 0.4]))],
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_accepted_or_put_in_its_place_has_the_targets_distribution(probe: Probe, kind: str) -> None:
    for seed, (target, draft) in enumerate(PAIRS[kind]):
        probe.configure(Sampling(seed=seed))
        tokens, accepted = probe.speculate(target, draft)
        counts = np.bincount(tokens, minlength=target.size)
        assert (np.abs(counts - DRAWS * target) <= 4.5 * np.sqrt(DRAWS * target * (1 - target))).all()
        # The most that any such rule can accept: one less the total variation distance of the two.
        likely = np.minimum(target, draft).sum()
        assert abs(accepted - DRAWS * likely) <= 4.5 * np.sqrt(DRAWS * likely * max(0, 1 - likely)) + 1e-6 * DRAWS


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_greedy_decoding_takes_the_likeliest_whatever_the_draft(probe: Probe, n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(n, dtype=np.float32)
    probe.configure(Sampling(temperature=0.0, seed=seed))
    ids, probabilities = probe.distribution(logits, [])
    assert (ids.tolist(), probabilities.tolist()) == ([logits.argmax()], [1.0])
    target = np.zeros(64)
    target[ids] = probabilities
    tokens, _ = probe.speculate(target, random_distribution(rng, 64, k))
    assert (tokens == logits.argmax()).all()


def test_a_sum_of_a_little_less_than_one_does_no_harm(probe: Probe) -> None:
    """As rounding may leave it: a token is turned down where no other is likelier than in the draft."""
    target, draft = np.array([0.5, 0.5, 0, 0]) * (1 - 1e-9), np.array([0.5, 0.5, 0, 0])
    tokens, _ = probe.speculate(target, draft)
    assert {*tokens.tolist()} == {0, 1}
