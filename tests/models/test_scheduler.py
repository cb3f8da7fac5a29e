"""Continuous batching: rows of several sessions in one submission, and sessions that are unaware of each other."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.models.tiny import write_tiny_llama
from wasmetal.device import Device
from wasmetal.device.base import Submission
from wasmetal.errors import DeviceError, DeviceLostError, ModelError, OutOfDeviceMemoryError
from wasmetal.models import Model, Session, TopLogits, load_model
from wasmetal.models.lm import heads, scheduler
from wasmetal.models.lm.jobs import Job
from wasmetal.models.lm.passes import ROWS, SEQUENCES, Pass

PATIENCE = 60.0
"""Seconds that a thread gets, on a busy machine."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("scheduler") / "tiny.gguf", qtype="Q8_0", context=2048)


@pytest.fixture
def model(device: Device, path: Path) -> Iterator[Model]:
    with load_model(path, device, contexts=24, context=512) as model:
        yield model


@pytest.fixture
def on_cpu(cpu: Device, path: Path) -> Iterator[Model]:
    with load_model(path, cpu, contexts=24, context=512) as model:
        yield model


Starter = Callable[[Pass, Sequence[Job]], Submission]


def replace_start(model: Model, make: Callable[[Starter], Starter], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put something in front of what submits a batch."""
    monkeypatch.setattr(model._scheduler, "_start", make(model._scheduler._start))


def failing(start: Starter, fails: Callable[[Job], bool], when: str) -> Starter:
    """Batches with such a job fail: when they are "started", or when they have "ended"."""

    def started(taken: Pass, jobs: Sequence[Job]) -> Submission:
        bad = any(map(fails, jobs))
        if bad and when == "started":
            raise DeviceError("a submission that fails")
        submission = start(taken, jobs)
        if bad:
            submission.wait()
            submission.error = DeviceError("work that fails")  # type: ignore[attr-defined]
        return submission

    return started


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """Holds up the first batch until it is opened, and notes the rows of every job in each."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[int]] = []
        self._model = model
        self.hold: Callable[[], object] = lambda: None
        """Called while all calls wait."""

        def noting(start: Starter) -> Starter:
            def noted(taken: Pass, jobs: Sequence[Job]) -> Submission:
                self.batches.append([job.rows for job in jobs])
                return start(taken, jobs)

            return noted

        replace_start(model, noting, monkeypatch)

    def together(self, *calls: Callable[[], object]) -> list[Any]:
        """Make calls on threads of their own, while a batch is in flight that ends when all of them wait."""
        with self._model.session() as first, ThreadPoolExecutor(len(calls)) as threads:
            steps = first.steps([1], None)
            while (submission := next(steps)) is None:
                pass
            scheduler = self._model._scheduler
            real, scheduler._pause = scheduler._pause, lambda: 0.01  # nobody starts the next batch
            with scheduler._current.waiting:  # and nobody waits for the device
                futures = [threads.submit(call) for call in calls]
                until(lambda: len(scheduler._queue) == len(calls))
                self.hold()
            scheduler._pause = real
            submission.wait()
            for _ in steps:
                pass
            return [future.result(PATIENCE) for future in futures]


@pytest.fixture
def gate(model: Model, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(model, monkeypatch)


def step(session: Session, *tokens: int) -> NDArray[np.float32]:
    """The logits after some more tokens."""
    logits = session.model.logits()
    session.forward(tokens, logits)
    return logits.numpy().copy()


def test_what_waits_becomes_one_batch(model: Model, gate: Gate) -> None:
    prompts = [[3 + i, 7, 2 * i] for i in range(5)]
    with model.session() as one:
        expected = []
        for prompt in prompts:
            expected.append(step(one, *prompt))
            one.truncate(0)
    gate.batches.clear()
    sessions = [model.session() for _ in prompts]
    got = gate.together(*(lambda s=s, p=p: step(s, *p) for s, p in zip(sessions, prompts, strict=True)))
    assert gate.batches == [[1], [3] * 5]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    assert [session.counters.submits for session in sessions] == [1] * 5
    assert all(session.counters.device_seconds > 0 for session in sessions)


def test_as_many_as_fit(model: Model, gate: Gate) -> None:
    """Sequences and rows are limited; what does not fit is in the next batch, in order."""
    sessions = [model.session() for _ in range(4)]
    counts = [40, 30, 24, 64]
    gate.together(*(lambda s=s, n=n: s.forward([1] * n, None) for s, n in zip(sessions, counts, strict=True)))
    batches = [sorted(batch) for batch in gate.batches[1:]]
    assert all(sum(batch) <= ROWS[1] for batch in batches)
    assert sorted(itertools.chain(*batches)) == sorted(counts)
    assert len(batches) == 3
    assert [session.length for session in sessions] == counts


@pytest.mark.parametrize(
    ("row_seconds", "batches"), [(1e-5, [[128, 128, 128], [128]]), (1e-3, [[128]] * 4), (None, [[128]] * 4)]
)
def test_long_prompts_are_run_together_if_that_is_quick(
    on_cpu: Model, monkeypatch: pytest.MonkeyPatch, row_seconds: float | None, batches: list[list[int]]
) -> None:
    gate, prompts = Gate(on_cpu, monkeypatch), [[i + 1] * 128 for i in range(4)]
    with on_cpu.session() as one:
        expected = []
        for prompt in prompts:
            expected.append(step(one, *prompt))
            one.truncate(0)
    monkeypatch.setattr(on_cpu._pacing, "took", lambda rows, seconds: None)
    monkeypatch.setattr(on_cpu._pacing, "_row_seconds", row_seconds)
    monkeypatch.setattr(on_cpu._pacing, "_most", 450)
    gate.batches.clear()
    sessions = [on_cpu.session() for _ in prompts]
    # Half of a batch's rows, so that each prompt is one job, whatever is known of its time.
    monkeypatch.setattr(on_cpu._pacing, "rows", lambda user: 128)
    got = gate.together(*(lambda s=s, p=p: step(s, *p) for s, p in zip(sessions, prompts, strict=True)))
    assert gate.batches[1:] == batches
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_more_sequences_than_a_batch_has(on_cpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(on_cpu, monkeypatch)
    sessions = [on_cpu.session() for _ in range(SEQUENCES + 5)]
    gate.together(*(lambda s=s: s.forward([5], None) for s in sessions))
    assert [len(batch) for batch in gate.batches] == [1, SEQUENCES, 5]


def test_a_sequence_that_chooses_its_next_token_is_waited_for(on_cpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for long."""
    gate = Gate(on_cpu, monkeypatch)
    monkeypatch.setattr(scheduler, "_SAMPLING", (1e9, 1.0))
    one, two = on_cpu.session(), on_cpu.session()
    gate.together(*(lambda s=s: s.forward([5], None) for s in (one, two)))
    gate.batches.clear()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(one.forward, [6], None)
        until(lambda: bool(on_cpu._scheduler._queue))
        two.forward([6], None)
        first.result(PATIENCE)
    assert gate.batches == [[1, 1]]
    monkeypatch.setattr(scheduler, "_SAMPLING", (1e9, 0.01))
    one.forward([7], None)  # after a second at most, as the last batch ended under the old rule
    one.forward([7], None)
    assert gate.batches[1:] == [[1], [1]]


def test_one_that_is_closed_is_not_waited_for(on_cpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(on_cpu, monkeypatch)
    monkeypatch.setattr(scheduler, "_SAMPLING", (1e9, 1e3))
    with on_cpu.session() as one:
        one.forward([5], None)
        assert on_cpu._scheduler._pause()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(on_cpu.session().forward, [5], None).result(PATIENCE)
    assert gate.batches == [[1], [1]]


def test_one_that_would_come_back_late_is_not_waited_for(on_cpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """If as many others are there: they take turns with it."""
    gate = Gate(on_cpu, monkeypatch)
    monkeypatch.setattr(scheduler, "_SAMPLING", (1e9, 1e3))
    one, two = on_cpu.session(), on_cpu.session()
    one.forward([5], None)
    on_cpu._scheduler._pace = 1e6
    two.forward([5], None)
    assert gate.batches == [[1], [1]]


def test_those_of_a_batch_wake_one_after_the_other(on_cpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if one of them gives up instead of waking the next. None of them looks by itself."""
    gate = Gate(on_cpu, monkeypatch)
    monkeypatch.setattr(scheduler, "LOOK", 2 * PATIENCE)

    def give_up(session: Session) -> None:
        with contextlib.closing(session.steps([5], None)) as steps:
            for submission in steps:
                if submission is not None:
                    submission.wait(PATIENCE)
                    return

    for _ in range(5):
        sessions = [on_cpu.session() for _ in range(12)]
        calls = [lambda s=s, i=i: s.forward([5], None) if i % 3 else give_up(s) for i, s in enumerate(sessions)]
        gate.together(*calls)
        assert [session.length for session in sessions] == [0, 1, 1] * 4
    assert [len(batch) for batch in gate.batches] == [1, 12] * 5


def alone_and_among_others(model: Model, others: int) -> tuple[list[bytes], list[bytes]]:
    """The logits of one session's 12 tokens after a prompt, alone, and beside others that do all kinds of things."""

    def speak(session: Session) -> list[bytes]:
        said = [step(session, *range(30, 110)).tobytes()]
        for token in range(12):
            said.append(step(session, token).tobytes())
        return said

    with model.session() as session:
        alone = speak(session)
    over = threading.Event()

    def disturb(seed: int) -> None:
        random = Random(seed)
        while not over.is_set():
            with model.session() as session:
                session.forward([random.randrange(270) for _ in range(random.choice([1, 5, 90]))], None)
                for _ in range(random.randrange(12)):
                    step(session, random.randrange(270))

    with ThreadPoolExecutor(others) as threads:
        futures = [threads.submit(disturb, seed) for seed in range(others)]
        try:
            with model.session() as session:
                among = speak(session)
        finally:
            over.set()
        for future in futures:
            future.result(PATIENCE)
    return alone, among


@pytest.mark.slow_on("vulkan")
@pytest.mark.timeout(400)
def test_the_same_tokens_alone_and_among_others(device: Device, path: Path) -> None:
    """Bit for bit, if that is asked for."""
    others = 15 if device.info.backend == "cpu" else 5
    with load_model(path, device, contexts=24, context=512, deterministic=True) as model:
        alone, among = alone_and_among_others(model, others)
    assert alone == among


def test_mixtures_cannot_be_deterministic(cpu: Device, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", architecture="qwen3moe")
    with pytest.raises(ModelError, match="a mixture of experts cannot be deterministic"):
        load_model(path, cpu, deterministic=True)


@pytest.mark.slow_on("vulkan")
@pytest.mark.timeout(400)
def test_much_the_same_without_that(model: Model) -> None:
    others = 15 if model.device.info.backend == "cpu" else 5
    alone, among = (np.frombuffer(b"".join(said), np.float32) for said in alone_and_among_others(model, others))
    np.testing.assert_allclose(among, alone, rtol=0.01, atol=0.01)


class TestFailures:
    """What goes wrong with one caller's rows is no concern of another's."""

    @pytest.fixture
    def gate(self, on_cpu: Model, monkeypatch: pytest.MonkeyPatch) -> Gate:
        return Gate(on_cpu, monkeypatch)

    @pytest.mark.parametrize("when", ["started", "ended"])
    def test_rows_that_fail(self, on_cpu: Model, gate: Gate, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
        sessions = [on_cpu.session() for _ in range(3)]
        expected = step(on_cpu.session(), 5, 6)
        free = on_cpu.cache.free
        bad = 3  # the rows of the call that fails

        replace_start(on_cpu, lambda start: failing(start, lambda job: job.rows == bad, when), monkeypatch)

        def expect_failure() -> bool:
            with pytest.raises(DeviceError, match="that fails"):
                sessions[2].forward([5] * bad, None)
            return True

        *served, failed = gate.together(*(lambda s=s: step(s, 5, 6) for s in sessions[:2]), expect_failure)
        assert failed
        for logits in served:
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        assert [session.length for session in sessions] == [2, 2, 0]
        assert on_cpu.cache.free == free - 2
        sessions[2].forward([5], None)

    def test_a_lost_device_is_everybodys_concern(
        self, on_cpu: Model, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def losing(start: Starter) -> Starter:
            def started(taken: Pass, jobs: Sequence[Job]) -> Submission:
                if len(jobs) > 1:
                    raise DeviceLostError("the device was lost")
                return start(taken, jobs)

            return started

        replace_start(on_cpu, losing, monkeypatch)
        sessions = [on_cpu.session() for _ in range(3)]

        def expect_loss(session: Session) -> bool:
            with pytest.raises(DeviceLostError):
                session.forward([5], None)
            return session.length == 0

        assert gate.together(*(lambda s=s: expect_loss(s) for s in sessions)) == [True] * 3

    @pytest.mark.parametrize("given_up", ["waiting", "in flight"])
    def test_a_caller_that_gives_up(
        self, on_cpu: Model, gate: Gate, given_up: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session, other = on_cpu.session(), on_cpu.session()
        free = on_cpu.cache.free
        with on_cpu.session() as same:
            expected = step(same, 5)

        def give_up() -> None:
            steps = session.steps([1, 2], None)
            next(steps)
            while (submission := next(steps)) is None and given_up == "in flight":
                pass
            assert (submission is None) == (given_up == "waiting")
            if given_up == "waiting":
                both_wait.wait(PATIENCE)
            steps.close()
            gave_up.set()

        def hold() -> None:
            both_wait.set()
            gave_up.wait(PATIENCE)

        both_wait, gave_up = threading.Event(), threading.Event()
        if given_up == "waiting":
            monkeypatch.setattr(gate, "hold", hold)
        _, logits = gate.together(give_up, lambda: step(other, 5))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        assert (session.length, other.length) == (0, 1)
        assert on_cpu.cache.free == free - 1
        session.forward([1, 2], None)

    def test_the_thread_that_waited_gives_up(self, on_cpu: Model, gate: Gate) -> None:
        """Another one of the batch then waits for the device in its place."""
        one, two = on_cpu.session(), on_cpu.session()
        in_flight = threading.Barrier(2)

        def give_up() -> None:
            steps = one.steps([1], None)
            while (submission := next(steps)) is None:
                pass
            in_flight.wait(PATIENCE)
            with pytest.raises(DeviceError, match="did not finish within"):
                submission.wait(0.0)
            steps.close()
            in_flight.wait(PATIENCE)

        def wait() -> None:
            steps = two.steps([1], None)
            while (submission := next(steps)) is None:
                pass
            in_flight.wait(PATIENCE)
            in_flight.wait(PATIENCE)
            submission.wait(PATIENCE)
            for _ in steps:
                pass

        gate.together(give_up, wait)
        assert (one.length, two.length) == (0, 1)

    def test_no_memory_for_all_logits(self, on_cpu: Model, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then they are computed one by one."""

        def refuse(*_: object) -> None:
            raise OutOfDeviceMemoryError("no room")

        monkeypatch.setattr(heads.Heads, "__init__", refuse)
        expected = step(on_cpu.session(), 5)
        sessions = [on_cpu.session() for _ in range(3)]
        for logits in gate.together(*(lambda s=s: step(s, 5) for s in sessions)):
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture(on_cpu: Model, seed: int) -> None:
    """Threads that read, decode, fork, truncate and give up: whatever they end with, it is what their tokens say."""
    free = on_cpu.cache.free

    def act(number: int) -> tuple[list[int], NDArray[np.float32]]:
        random = Random(f"{seed} {number}")
        session, tokens = on_cpu.session(), []
        for _ in range(25):
            more = [random.randrange(270) for _ in range(random.choice([1, 1, 1, 3, 40]))]
            what = random.random()
            if what < 0.15 and tokens:
                tokens = tokens[: random.randrange(len(tokens))]
                session.truncate(len(tokens))
            elif what < 0.3:
                steps = session.steps(more, None)
                for submission in itertools.islice(steps, random.randrange(5)):
                    if submission is not None and random.random() < 0.7:
                        submission.wait()
                    elif submission is not None:
                        break
                steps.close()
                tokens += more if session.length > len(tokens) else []  # it came to its end
            elif what < 0.4:
                session = session.fork()
            elif len(tokens) < 300:
                session.forward(more, None)
                tokens += more
        last = step(session, 9)
        session.close()
        return [*tokens, 9], last

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(act, range(6)))
    for tokens, last in results:
        with on_cpu.session() as session:
            np.testing.assert_allclose(last, step(session, *tokens), rtol=1e-3, atol=1e-3)
    assert on_cpu.cache.free == free


@pytest.mark.parametrize("deterministic", [False, True])
def test_all_kinds_of_logits_in_one_batch(
    device: Device, path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """All of them, the largest few or the largest one, and none."""
    with load_model(path, device, contexts=8, context=512, deterministic=deterministic) as model:
        gate = Gate(model, monkeypatch)
        prompts = [[5, 6], [7], [8, 9, 10], [11, 12], [13]]
        with model.session() as session:
            expected = []
            for prompt in prompts:
                expected.append(step(session, *prompt))
                session.truncate(0)
        sessions = [model.session() for _ in prompts]
        wanted = [model.logits(), TopLogits(64), TopLogits(1), None, model.logits()]
        calls = zip(sessions, prompts, wanted, strict=True)
        gate.batches.clear()
        gate.together(*(lambda s=s, p=p, w=w: s.forward(p, w) for s, p, w in calls))
        assert len(gate.batches) == 2
        for what, logits in zip(wanted, expected, strict=True):
            if isinstance(what, TopLogits):
                order = np.argsort(-logits, kind="stable")[: len(what.ids)]
                np.testing.assert_allclose(what.values, logits[order], rtol=1e-3, atol=1e-3)
                np.testing.assert_allclose(logits[what.ids], what.values, rtol=1e-3, atol=1e-3)
                np.testing.assert_allclose(what.total, np.exp(logits - what.maximum).sum(), rtol=1e-3)
            elif what is not None:
                np.testing.assert_allclose(what.numpy(), logits, rtol=1e-3, atol=1e-3)
