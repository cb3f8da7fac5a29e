"""Guests that want more of a device than their share: they pay for what they use, and others get theirs in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from wasmetal import Limits, load_model
from wasmetal.device import Device
from wasmetal.device.base import Submission
from wasmetal.errors import GuestError, LimitError
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.models import Model
from wasmetal.models.lm import pacing
from wasmetal.models.lm.jobs import Job
from wasmetal.models.lm.pacing import ALONE, RECENT, SHARED, Pacing
from wasmetal.models.lm.passes import ROWS, Pass

ADD, SOFTMAX = 9, 11
LONG = 60.0
"""Seconds that no wait takes, however busy the machine is."""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Work of a guest on a thread, until it ends or the guest is stopped."""

    def run() -> None:
        with suppress(GuestError):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield thread
    thread.join(LONG)
    assert not thread.is_alive()


def add(buffer: int) -> Any:
    x = tensor(buffer, (4,))
    return command(ADD, x, x, tensor(buffer, (4,), 64))


def busy_list(buffer: int, count: int = 16) -> list[Any]:
    """Commands that take some milliseconds each."""
    x = tensor(buffer, (1, 4 * PAGE))
    return [command(SOFTMAX, x, x)] * count


# ---- Lists that nobody waits for


@pytest.mark.vulkan
def test_a_guest_that_never_waits_pays(vulkan: Device) -> None:
    """Its time is charged when another guest uses the device, and its next list is refused."""
    with Probe(vulkan, limits=Limits(device_seconds=1e-4)) as never, Probe(vulkan) as other:
        buffer, mine = never.allocate(16 * PAGE), other.allocate(128)
        never.start(*busy_list(buffer))
        other.run(add(mine))  # behind it, so that it has ended
        other.run(add(mine))
        counters = never.guest.counters
        assert counters.device_seconds > 1e-4
        assert counters.dispatches > 0  # as many as the device was given at a time
        with pytest.raises(LimitError, match="device time"):
            never.try_submit(add(buffer))
        assert other.guest.counters.dispatches == 2


@pytest.mark.vulkan
def test_a_guest_that_never_waits_is_charged_at_its_own_next_list(vulkan: Device) -> None:
    with Probe(vulkan, limits=Limits(device_seconds=1e-4)) as never:
        buffer = never.allocate(16 * PAGE)
        never.start(*busy_list(buffer))

        def submit_for_ever() -> None:
            while True:
                never.try_submit(add(buffer))
                time.sleep(0.005)

        with pytest.raises(LimitError, match="device time"):
            submit_for_ever()


def test_nobody_computes_for_another_guest_on_the_cpu(cpu: Device) -> None:
    """Lists that nobody waits for do not run at all, whoever else uses the device on whatever thread."""
    with Probe(cpu) as never, Probe(cpu) as other:
        buffer, mine = never.allocate(16 * PAGE), other.allocate(128)
        handle = never.start(*busy_list(buffer))
        for _ in range(20):  # on 20 threads, some of which have the number of an earlier one
            other.run(add(mine))
        assert never.guest.counters.dispatches == 0
        assert never.submission_wait(handle, abi.FOREVER) == Errno.SUCCESS
        assert never.guest.counters.dispatches == 16


def test_lists_that_are_polled_are_charged(device: Device) -> None:
    """A wait with no timeout at all is a wait, too."""
    with Probe(device, limits=Limits(device_seconds=1e-4)) as probe:
        handle = probe.start(*busy_list(probe.allocate(16 * PAGE), 64))

        def poll() -> None:
            while probe.submission_wait(handle, 0) == Errno.TIMEDOUT:
                pass
            probe.try_submit(add(probe.allocate(128)))

        with pytest.raises(LimitError, match="device time"):
            poll()


# ---- Forward passes


@pytest.fixture(scope="module")
def model(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Wide enough for a batch to take some milliseconds."""
    path = write_tiny_llama(tmp_path_factory.mktemp("fairness") / "tiny.gguf", context=4096)
    with load_model(path, device) as model:
        yield model


class Reader:
    """A guest with a session."""

    def __init__(self, model: Model, **limits: Any) -> None:
        self.model = model
        self.probe = Probe(model.device, models={"tiny": model}, limits=Limits(**limits))
        self.probe.put(128, b"tiny")
        assert self.probe.model_open(128, 4, self.probe.OUT) == Errno.SUCCESS
        assert self.probe.session_open(self.probe.u32(), self.probe.OUT) == Errno.SUCCESS
        self.session = self.probe.u32()

    def forward(self, count: int) -> Errno:
        self.probe.put(PAGE, np.ones(count, np.uint32))
        return self.probe.session_forward(self.session, PAGE, count, 0)

    @property
    def length(self) -> int:
        assert self.probe.session_length(self.session, self.probe.OUT) == Errno.SUCCESS
        return self.probe.u32()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.probe.guest.close()


PROMPT = 1024
"""Tokens: 16 batches of 64, and less than a guest's share of the KV cache."""


@pytest.fixture
def batches(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each batch that the device has been given, which are small on every device."""
    monkeypatch.setattr(pacing, "ALONE", 0.0)
    monkeypatch.setattr(pacing, "SHARED", 0.0)
    monkeypatch.setattr(model, "_pacing", Pacing(ROWS[-1]))
    rows: list[int] = []
    scheduler = model._scheduler
    real = scheduler._start

    def noted(taken: Pass, jobs: Sequence[Job]) -> Submission:
        rows.append(sum(job.rows for job in jobs))
        return real(taken, jobs)

    monkeypatch.setattr(scheduler, "_start", noted)
    return rows


def test_a_token_gets_in_between_the_batches_of_a_prompt(model: Model, batches: list[int]) -> None:
    if model.device.info.operations_per_second > 1e10:
        pytest.skip("the prompt would end too soon")
    with Reader(model) as long, Reader(model) as short:
        with background(lambda: long.forward(PROMPT)):
            until(lambda: len(batches) > 0)  # it has begun
            for _ in range(3):
                assert short.forward(1) == Errno.SUCCESS
        assert batches.count(1) == 3
        assert batches[-1] == ROWS[1]  # the prompt's last batch came after all of the others
        assert long.length == PROMPT


def test_batches_are_large_only_if_they_are_quick(
    model: Model, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with model.session() as session:
        monkeypatch.setattr(pacing, "ALONE", 1000.0)
        session.forward([1] * 200, None)
        session.forward([1] * 200, None)
        assert batches == [64, 136, 200]
        batches.clear()
        monkeypatch.setattr(pacing, "ALONE", 0.0)
        session.forward([1] * 100, None)
        assert batches == [64, 36]


def test_batches_are_smaller_while_others_use_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: now))
    pace, one, other = Pacing(ROWS[-1]), object(), object()
    assert pace.rows(one) == ROWS[1]  # as long as nothing is known
    pace.took(64, 64 * ALONE / 300)
    assert pace.rows(one) == 256
    pace.took(8, 1.0)  # that says nothing
    now += RECENT / 2
    assert pace.rows(other) == 64
    now += RECENT / 2
    assert pace.rows(other) == 64
    now += RECENT / 2
    assert pace.rows(other) == 256
    pace.took(256, SHARED * 256 / 200)
    assert pace.rows(other) == 512
    assert pace.rows(one) == 192
    pace.took(192, 0.0)  # as a GPU without timestamps reports
    assert pace.rows(one) == ROWS[-1]


@pytest.mark.parametrize("end", ["wall time", "device time", "stop", "close"])
def test_a_prompt_ends_within_a_batch(model: Model, batches: list[int], end: str) -> None:
    """And leaves nothing behind: no pages, and nothing that another session could notice."""
    free = model.cache.free
    limits = {"wall time": {"wall_seconds": 0.05}, "device time": {"device_seconds": 0.02}}.get(end, {})
    with Reader(model, **limits) as reader:
        outcome: list[object] = []

        def run() -> None:
            try:
                while reader.forward(3500) == Errno.SUCCESS:
                    reader.probe.session_truncate(reader.session, 0)
            except GuestError as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        if end in ("stop", "close"):
            until(lambda: len(batches) > 1)
            begin = time.monotonic()
            getattr(reader.probe.guest, end)()
            assert time.monotonic() - begin < 10
        thread.join(LONG)
        assert not thread.is_alive()
        assert isinstance(outcome[0], LimitError if end.endswith("time") else GuestError)
    until(lambda: model.cache.free == free)
    with model.session() as one, model.session() as two:
        one.forward([1, 2, 3] * 50, None)
        two.forward([1, 2, 3] * 50, None)
        assert one.save() == two.save()


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "pending"])
def test_a_prompt_that_is_given_up_leaves_its_session_as_it_was(model: Model, ended: bool) -> None:
    """Whichever step is the last: also one that would have copied a page that a fork shares."""
    with model.session() as session, model.session() as reference:
        for each in (session, reference):
            each.forward([7] * 40, None)
        expected = reference.save()
        with session.fork() as child:
            for last in range(4):  # the turn before the first batch, the batch, and the same for the second
                steps = child.steps([1] * 100, None)
                for step in range(last + 1):
                    submission = next(steps)
                    if submission is not None and (ended or step < last):
                        submission.wait()
                steps.close()
                assert (child.length, child.save(), session.save()) == (40, expected, expected)
            child.forward([1] * 100, None)
            assert session.save() == expected


def test_an_unfinished_batch_is_not_computed_for_others_on_the_cpu(cpu: Device, tmp_path: Path) -> None:
    """The rest of a batch that is given up is dropped, so the next caller need not compute it."""
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf"), cpu) as model, model.session() as session:
        steps = session.steps([1] * 64, None)
        while (submission := next(steps)) is None:
            pass
        steps.close()
        assert not submission.pending
        assert submission.seconds == 0.0
        session.forward([1], None)
        assert session.length == 1
