"""next_token: what it chooses against the sampler of the host, which computes in float64; and what a row becomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench
from wasmetal import ops
from wasmetal.device import Device
from wasmetal.errors import OpError
from wasmetal.models import TopLogits
from wasmetal.models.lm.sampling import Sampler, pick
from wasmetal.ops import DType

STEPS, PAGES = 4, 2


def bits(*values: float) -> list[int]:
    return np.array(values, np.float32).view(np.int32).tolist()


class Row:
    """A row of a pass, with its settings."""

    def __init__(self, position: int, sequence: int, *, first: int, count: int = STEPS, **how: float) -> None:
        how = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "top_k": 64, "random": 0.0} | how
        self.place = position, sequence
        floats = bits(how["temperature"], how["top_p"], how["min_p"])
        self.settings = [*floats, int(how["top_k"]), first, count, *bits(how["random"]) * STEPS]


def run(device: Device, ids: np.ndarray, values: np.ndarray, rows: list[Row], lengths: list[int], valid: int):
    """(tokens, batch, lengths, chosen) after it."""
    with Bench(device) as bench:
        put_ids, put_values = bench.put(ids.astype(np.int32)), bench.put(values.astype(np.float32))
        settings = bench.put(np.array([row.settings for row in rows], np.int64).astype(np.int32))
        tokens = bench.put(np.full(len(rows), 7, np.int32))
        places = [row.place for row in rows]
        batch = bench.batch(len(rows), valid, [place[0] for place in places], [place[1] for place in places])
        sequences = bench.sequences([[3, 4]] * len(lengths), lengths)
        chosen = bench.put(np.full((len(rows), STEPS), -5, np.int32))
        bench.run(lambda rec: ops.next_token(rec, put_ids, put_values, settings, tokens, batch, sequences, chosen))
        bench.only(tokens, batch, sequences, chosen)
        got = bench.get(sequences)
        assert (got[:, 1:] == [3, 4]).all()
        return bench.get(tokens), bench.get(batch), got[:, 0].tolist(), bench.get(chosen)


def test_rows_go_on_and_end(device: Device) -> None:
    """The first token, one in the middle, the last, one too many, an ended sequence, a row that is not valid."""
    rows = [
        Row(9, 0, first=9),
        Row(11, 1, first=9),
        Row(12, 2, first=9),
        Row(13, 3, first=9),
        Row(9, 4, first=9),
        Row(9, 5, first=9),
    ]
    lengths = [10, 12, 13, 14, 0, 10]
    ids = np.arange(len(rows))[:, None] + 100
    tokens, batch, after, chosen = run(device, ids, np.zeros_like(ids), rows, lengths, valid=5)
    assert tokens.tolist() == [100, 101, 7, 7, 7, 7]
    assert batch[1:, 0].tolist() == [10, 12, 12, 13, 9, 9]
    assert after == [11, 13, 0, 14, 0, 10]
    places = {(0, 0): 100, (1, 2): 101, (2, 3): 102}
    assert {place: int(chosen[place]) for place in zip(*np.nonzero(chosen != -5), strict=True)} == places


@given(
    st.integers(1, 64),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.7, 3.0]),
    st.sampled_from([1, 2, 40, 64]),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_chosen_like_the_hosts_sampler(
    device: Device, k: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """The same token, unless the random number is that close to where the host chooses another one."""
    random = np.random.default_rng(seed)
    count = 8
    values = -np.sort(-3 * random.standard_normal((count, k)).astype(np.float32), axis=1)
    ids = np.array([random.permutation(1000)[:k] for _ in range(count)])
    how: dict[str, float] = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "top_k": top_k}
    states = [int(each) for each in random.integers(0, 2**63, count)]
    draws = [Sampler(temperature, top_k, top_p, min_p, state).draws(1).randoms[0] for state in states]
    rows = [Row(0, i, first=0, random=draw, **how) for i, draw in enumerate(draws)]
    _, _, _, chosen = run(device, ids, values, rows, [1] * count, valid=count)
    for row in range(count):
        top = TopLogits(k)
        top.ids[:], top.values[:] = ids[row], values[row]
        expected = Sampler(temperature, top_k, top_p, min_p, states[row]).choose(top)
        if chosen[row, 0] != expected:
            assert temperature > 0
            assert chosen[row, 0] in {
                pick(Sampler(temperature, top_k, top_p * edge, min_p * edge), top, draws[row] + shift)
                for shift in (-1e-5, 1e-5)
                for edge in (1 - 1e-5, 1 + 1e-5)
            }


def test_distribution(device: Device) -> None:
    """Frequencies over evenly spread random numbers are the probabilities, within the spacing."""
    values = np.array([2.0, 1.5, 1.0, 0.0, -1.0, -np.inf], np.float32)
    ids = np.array([10, 11, 12, 13, 14, -1])
    count, temperature = 500, 0.8
    rows = [Row(0, i, first=0, temperature=temperature, random=(i + 0.5) / count) for i in range(count)]
    tiled = [np.tile(each, (count, 1)) for each in (ids, values)]
    _, _, _, chosen = run(device, *tiled, rows, [1] * count, valid=count)
    expected = np.exp(values[:5].astype(np.float64) / temperature)
    found = [(chosen[:, 0] == token).sum() for token in ids[:5]]
    assert np.abs(found / expected.sum() ** 0 / count - expected / expected.sum()).max() < 2 / count
    assert sum(found) == count


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(device: Device, value: float) -> None:
    ids, values = np.array([[4, 5], [-1, -1]]), np.full((2, 2), value)
    rows = [Row(0, i, first=0, temperature=1.0, random=0.99) for i in range(2)]
    assert run(device, ids, values, rows, [1, 1], valid=2)[3][:, 0].tolist() == [4, 0]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=12, max_size=12))
def test_any_words(device: Device, words: list[int]) -> None:
    """Nothing outside of the tensors is read or written, whatever the inputs say."""
    row = Row(0, 0, first=0)
    row.settings = [int(np.uint32(word).view(np.int32)) for word in words[: 6 + STEPS]]
    row.place = int(np.uint32(words[10]).view(np.int32)), int(np.uint32(words[11]).view(np.int32))
    run(device, np.array([[1, 2]]), np.array([[1.0, 0.5]]), [row], [5], valid=1)


def test_shapes_are_checked(device: Device) -> None:
    with Bench(device) as bench:
        ids, values = bench.empty(2, 3, dtype=DType.I32), bench.empty(2, 3)
        settings, tokens = bench.empty(2, 6 + STEPS, dtype=DType.I32), bench.empty(2, dtype=DType.I32)
        batch, sequences = bench.batch(2), bench.sequences([[0]], [1])
        good = ids, values, settings, tokens, batch, sequences, bench.empty(2, STEPS, dtype=DType.I32)
        wrong = bench.empty(2, 5)
        for place in range(len(good)):
            with pytest.raises(OpError):
                bench.run(lambda rec, at=place: ops.next_token(rec, *good[:at], wrong, *good[at + 1 :]))
        with pytest.raises(OpError, match="overlaps"):
            bench.run(
                lambda rec: ops.next_token(rec, ids, values, settings, settings.reshape(20).rows(0, 2), *good[4:])
            )
