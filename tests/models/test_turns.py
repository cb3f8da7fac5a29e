"""Sequences for which the device chooses tokens, batch after batch, among others and by themselves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.models.test_sampling import drive
from tests.models.test_scheduler import PATIENCE, Starter, failing, replace_start
from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device
from wasmetal.device.base import Submission
from wasmetal.errors import DeviceError
from wasmetal.models import Model, Session, load_model
from wasmetal.models.lm import scheduler
from wasmetal.models.lm.jobs import Job
from wasmetal.models.lm.pacing import Pacing
from wasmetal.models.lm.passes import Pass
from wasmetal.models.lm.sampling import Sampler, generate

STEPS = 3
"""Tokens of a batch, here."""


@pytest.fixture(scope="module")
def model(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path: Path = write_tiny_llama(tmp_path_factory.mktemp("turns") / "tiny.gguf", context=512)
    with load_model(path, device, contexts=12, context=256) as model:
        yield model


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pacing, "steps", lambda _: STEPS)
    monkeypatch.setattr(Pacing, "users", lambda _: 0)


class Batches:
    """Notes the jobs of each batch."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[list[Job]] = []

        def noting(start: Starter) -> Starter:
            def noted(taken: Pass, jobs: Sequence[Job]) -> Submission:
                self.jobs.append(list(jobs))
                return start(taken, jobs)

            return noted

        replace_start(model, noting, monkeypatch)


@pytest.fixture
def batches(model: Model, monkeypatch: pytest.MonkeyPatch) -> Batches:
    return Batches(model, monkeypatch)


def turn(session: Session, number: int, count: int, stops: frozenset[int] = frozenset()) -> list[int]:
    """Some tokens after one that depends on the number, with settings that do."""
    chosen: list[int] = []
    steps = generate(session, [number], Sampler(0.3 * number, 20 + number, seed=number), count, stops, chosen)
    with contextlib.closing(steps):
        drive(steps)
    return chosen


def alone(model: Model, number: int, count: int, stops: frozenset[int] = frozenset()) -> list[int]:
    with model.session() as session:
        return turn(session, number, count, stops)


def test_a_sequence_stays_until_it_has_its_tokens(model: Model, batches: Batches) -> None:
    free = model.cache.free
    with model.session() as session:
        tokens = turn(session, 1, 70)
        assert [jobs[0] for jobs in batches.jobs] == [batches.jobs[0][0]] * 24  # of three tokens, and one of one
        assert (len(tokens), session.length) == (70, 70)
        assert len(session.pages) == 3
        assert session.counters.submits == 1
        assert session.counters.device_seconds > 0
        with model.session() as other:
            for token in [1, *tokens[:-1]]:
                other.forward([token], None)
            session.forward([5], first := model.logits())
            other.forward([tokens[-1]], None)
            session.truncate(70)
            other.truncate(70)
            other.forward([5], second := model.logits())
            assert abs(first.numpy() - second.numpy()).max() < 1e-3
    assert model.cache.free == free


def test_those_that_come_later_join_and_all_get_their_own_tokens(model: Model, batches: Batches) -> None:
    # On the CPU device, enough for the last to come before the first has ended.
    counts = [64, 5, 30, 1, 128, 17] if model.device.info.backend == "cpu" else [16, 5, 8, 1, 32, 5]
    expected = [alone(model, number, count) for number, count in enumerate(counts, 1)]
    batches.jobs.clear()

    def begin(number: int, count: int) -> list[int]:
        with model.session() as session:
            time.sleep(0.003 * number)
            return turn(session, number, count)

    with ThreadPoolExecutor(len(counts)) as threads:
        got = [threads.submit(begin, *each) for each in enumerate(counts, 1)]
        assert [each.result(PATIENCE) for each in got] == expected
    assert max(map(len, batches.jobs)) > 1


def test_a_stop_ends_it_after_its_batch(model: Model, batches: Batches) -> None:
    free_running = alone(model, 2, 40)
    stop = next(token for at, token in enumerate(free_running) if at > 7 and token not in free_running[:at])
    end = free_running.index(stop) + 1
    batches.jobs.clear()
    with model.session() as session:
        assert turn(session, 2, 40, frozenset([stop])) == free_running[:end]
        assert session.length == end
    assert len(batches.jobs) == -(-end // STEPS)


def test_one_that_has_met_a_stop_is_not_waited_for(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = alone(model, 2, 1)[0]
    monkeypatch.setattr(scheduler, "_SAMPLING", (1e9, 1e3))
    with model.session() as session, ThreadPoolExecutor(1) as threads:
        assert turn(session, 2, 40, frozenset([stop])) == [stop]
        threads.submit(alone, model, 1, 4).result(PATIENCE)


def test_a_turn_ends_in_time(model: Model, batches: Batches) -> None:
    """After at least a batch; the next one goes on."""
    expected = alone(model, 3, 9)
    batches.jobs.clear()
    sampler, chosen = Sampler(0.9, 23, seed=3), []
    with model.session() as session:
        drive(generate(session, [3], sampler, 9, (), chosen, 0.0))
        assert (len(batches.jobs), chosen, session.length) == (1, expected[:STEPS], STEPS)
        drive(generate(session, chosen[-1:], sampler, 9, (), chosen, 60.0))
    assert chosen == expected


@pytest.mark.parametrize("when", ["started", "ended"])
def test_a_batch_fails_in_the_middle(
    model: Model, batches: Batches, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are not to blame go on where they were; of the other, nothing is left."""
    expected = [alone(model, number, 20) for number in (1, 2)]
    free = model.cache.free
    bad: list[int] = []

    def fails(job: Job) -> bool:
        return job.sequence in bad and job.draws is not None and len(job.draws.tokens) >= 6

    replace_start(model, lambda start: failing(start, fails, when), monkeypatch)

    def fail() -> int:
        with model.session() as session:
            bad.append(id(session))
            with pytest.raises(DeviceError, match="that fails"):
                turn(session, 5, 20)
            return session.length

    def succeed(number: int) -> list[int]:
        with model.session() as session:
            return turn(session, number, 20)

    with ThreadPoolExecutor(3) as threads:
        failed, *others = threads.submit(fail), *(threads.submit(succeed, number) for number in (1, 2))
        assert [each.result(PATIENCE) for each in others] == expected
        assert failed.result(PATIENCE) == 0
    assert model.cache.free == free


def test_one_that_gives_up_in_the_middle(model: Model, batches: Batches) -> None:
    """The others do not notice, and its pages are there again."""
    expected = alone(model, 1, 40)
    free = model.cache.free
    batches.jobs.clear()

    def give_up() -> int:
        with model.session() as session:
            steps = generate(session, [7], Sampler(), 100, (), [])
            while next(steps) is None:
                pass
            steps.close()
            return session.length

    def speak() -> list[int]:
        with model.session() as session:
            return turn(session, 1, 40)

    with ThreadPoolExecutor(4) as threads:
        gone = [threads.submit(give_up) for _ in range(3)]
        assert threads.submit(speak).result(PATIENCE) == expected
        assert [each.result(PATIENCE) for each in gone] == [0] * 3
    alone(model, 1, 5)  # what was given up has ended by then
    assert model.cache.free == free
