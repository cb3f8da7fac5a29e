"""Command buffers that are encoded while the GPU runs the one before: what is left to do at a submission, and that such
a buffer is used for the right submission, in order, or is gone before what it refers to."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.device.harness import floats, recorded, span
from tests.metal.standin import Gpu, bridge, installed
from tests.metal.standin.bridge import table
from tests.metal.standin.framework import CommandBuffer, broken
from tests.metal.test_metal_mps import chain, check, gemms, record
from tests.models.tiny import write_tiny_llama
from tests.ops.tensors import Bench
from wasmetal.device import Buffer, CommandList, Device, MemoryKind, open_device
from wasmetal.errors import DeviceError
from wasmetal.memory.pages import page_size
from wasmetal.models import load_model

pytestmark = pytest.mark.usefixtures("tried")

READY = Counter({"status": 1, "encodeSignalEvent:value:": 1, "commit": 1})
"""The calls of a submission whose command buffer was encoded before: the last is asked whether it has ended."""


class Calls:
    """The calls of each submission, from its beginning to its commit."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.each: list[Counter[str]] = []
        commit = CommandBuffer.commit

        def spy(commands: CommandBuffer) -> None:
            commit(commands)
            self.each.append(Counter(bridge.calls) - self._before)

        patch.setattr(CommandBuffer, "commit", spy)
        self.begin()

    def begin(self) -> None:
        """A submission begins."""
        self._before = Counter(bridge.calls)

    def submit(self, device: Device, *lists: CommandList) -> Counter[str]:
        """Submit these lists and wait for them; returns the calls."""
        self.begin()
        device.submit(lists).wait()
        # How often residency is requested depends on time, not on submissions (test_metal_residency.py).
        return Counter({name: count for name, count in self.each[-1].items() if name != "requestResidency"})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


class Sums:
    """A vector, and lists that change it: by doubling it, by adding 1 (times the host's ``step``), and by both."""

    def __init__(self, device: Device) -> None:
        self.buffer: Buffer = device.allocate(3 * 64, MemoryKind.SHARED)
        value, step = span(self.buffer, 0, 16), span(self.buffer, 16, 16)
        self.step = floats(self.buffer)[16:32]
        floats(self.buffer)[:32] = 1
        self.double = recorded(device, (value, value, value))
        self.add = recorded(device, (value, step, value))
        self.both = recorded(device, (value, value, value), (value, step, value))

    @property
    def value(self) -> float:
        values = floats(self.buffer)[:16]
        assert (values == values[0]).all()
        return float(values[0])


def test_what_is_left_to_do_at_a_submission(emulated: Device, calls: Calls) -> None:
    """Of a list of any length: nothing but to commit it. Inputs are in memory that the list reads when it runs."""
    sums = Sums(emulated)
    value, step = span(sums.buffer, 0, 16), span(sums.buffer, 16, 16)
    long = recorded(emulated, *[(value, step, value)] * 50)
    first, second = calls.submit(emulated, long), calls.submit(emulated, long)
    assert first - second <= READY
    assert second.total() > 100  # a barrier and a dispatch for each
    for step in (2, 3, -1):
        sums.step[:] = step
        assert calls.submit(emulated, long) == READY
    assert sums.value == 1 + 50 * (1 + 1 + 2 + 3 - 1)


@pytest.mark.parametrize("blocks", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_what_is_left_to_do_for_a_decoded_token(emulated: Device, calls: Calls, tmp_path: Path, blocks: int) -> None:
    """From the arrival of a token to the commit of what decodes it: the numbers in docs/metal.md."""
    counts, found = [], []
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf", blocks=blocks), emulated) as model:
        logits = model.logits()
        with model.session() as session:
            session.forward([3, 1, 4, 1, 5], logits)
            for token in (9, 2, 6, 5):
                calls.begin()
                session.forward([token], logits)
                counts.append(calls.each[-1])
                found.append(logits.numpy().copy())
        before, _, *after = [count.total() - count["requestResidency"] for count in counts]
        print(f"{blocks} layers: {before} calls before the commit, then {after}")
        assert after == [READY.total()] * 2
        assert before > 40 * blocks
        with model.session() as session:  # all in a row, for the first time with these logits
            other = model.logits()
            session.forward([3, 1, 4, 1, 5, 9, 2, 6], logits)
            session.forward([5], other)
            assert np.abs(other.numpy() - found[-1]).max() <= 1e-3 * np.abs(found[-1]).max()


def test_alternating_lists(emulated: Device, calls: Calls) -> None:
    """Nothing is encoded ahead for lists that take turns."""
    sums, want = Sums(emulated), 1.0
    encoded = bridge.calls["dispatchThreadgroups:threadsPerThreadgroup:"]
    for _ in range(3):
        for commands in (sums.double, sums.add):
            assert calls.submit(emulated, commands) != READY
        want = 2 * want + 1
    assert sums.value == want
    assert bridge.calls["dispatchThreadgroups:threadsPerThreadgroup:"] == encoded + 6


def test_another_list_in_between(emulated: Device, calls: Calls) -> None:
    """What was encoded ahead sees the results of lists that were committed after that."""
    sums = Sums(emulated)
    for _ in range(2):
        calls.submit(emulated, sums.double)
    assert calls.submit(emulated, sums.add) != READY
    assert calls.submit(emulated, sums.double) == READY
    assert sums.value == 2 * (4 + 1)
    assert calls.submit(emulated, sums.double) != READY  # it was used, and there was no reason to encode another
    assert calls.submit(emulated, sums.double) == READY
    assert sums.value == 40


def test_two_lists_together(emulated: Device, calls: Calls) -> None:
    """They are one submission, and something else than either alone, or both in another order."""
    sums, want = Sums(emulated), 1.0
    for i in range(4):
        found = calls.submit(emulated, sums.double, sums.add)
        want = 2 * want + 1
        assert (found == READY) == (i >= 2)
    for lists in ([sums.add, sums.double], [sums.double], [sums.add]):
        assert calls.submit(emulated, *lists) != READY
    want = 2 * (2 * (want + 1)) + 1
    assert sums.value == want
    assert calls.submit(emulated, sums.double, sums.add) == READY
    assert sums.value == 2 * want + 1


def test_behind_work_in_flight(gpu: Gpu, emulated: Device, calls: Calls) -> None:
    """A command buffer that was encoded ahead waits for nothing, so it is not used while the GPU is at work."""
    sums = Sums(emulated)
    for _ in range(2):
        calls.submit(emulated, sums.double)
    pending = emulated.submit([sums.add])
    assert calls.submit(emulated, sums.double) != READY
    assert not pending.pending
    assert sums.value == 2 * (4 + 1)


def test_many_submissions_that_nobody_waits_for(emulated: Device, calls: Calls) -> None:
    sums = Sums(emulated)
    for _ in range(2):
        calls.submit(emulated, sums.double)
    submissions = [emulated.submit([each]) for each in (sums.add, sums.double, sums.both)]
    submissions[-1].wait()
    assert sums.value == 2 * (2 * (4 + 1)) + 1


def test_times_and_errors_are_those_of_the_submission(gpu: Gpu, emulated: Device, calls: Calls) -> None:
    sums = Sums(emulated)
    for _ in range(2):
        calls.submit(emulated, sums.double)
    code = gpu.command_error = table().constants["MTLCommandBufferErrorPageFault"]
    calls.begin()
    failed = emulated.submit([sums.double])
    assert calls.each[-1] == READY
    with pytest.raises(DeviceError, match=f"Metal error {code}"):
        failed.wait()
    assert failed.seconds == 0
    gpu.command_error = 0
    seconds = emulated.counters.device_seconds
    for _ in range(2):
        submission = emulated.submit([sums.double])
        submission.wait()
        assert submission.seconds > 0
        seconds += submission.seconds
    assert emulated.counters.device_seconds == pytest.approx(seconds)
    assert sums.value == 16


def ready(device: Device) -> bool:
    """Whether a command buffer was encoded ahead."""
    return bool(device.backend.queue._ahead._ready)


@pytest.mark.parametrize("how", ["closed", "closed in flight", "dropped", "one of two closed", "one of two dropped"])
def test_a_list_that_goes_takes_its_command_buffer_along(gpu: Gpu, emulated: Device, calls: Calls, how: str) -> None:
    sums = Sums(emulated)
    own = emulated.allocate(64, MemoryKind.SHARED)
    live = sorted(gpu.live)
    other = emulated.allocate(3 * page_size(), MemoryKind.SHARED)
    whole = span(other, 0, 16)
    commands = recorded(emulated, (whole, whole, whole), (span(own, 0, 16), whole, span(own, 0, 16)))
    together = [commands, sums.double] if "two" in how else [commands]
    for _ in range(2):
        calls.submit(emulated, *together)
    assert ready(emulated)
    other.close()
    del other, whole
    gc.collect()
    assert sorted(gpu.live) != live  # the list still needs it
    if how == "closed in flight":
        submission = emulated.submit([commands])
        submission._queue._prepare(submission.work)
        commands.close()
        gc.collect()
        assert sorted(gpu.live) != live
        submission.wait()
    elif "closed" in how:
        commands.close()
    together.clear()
    del commands
    gc.collect()
    assert not ready(emulated)
    assert sorted(gpu.live) == live
    for _ in range(3):
        calls.submit(emulated, sums.double)
    assert not broken


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_device_that_is_closed(gpu: Gpu, emulated: Device, calls: Calls, in_flight: bool) -> None:
    sums = Sums(emulated)
    for _ in range(2):
        calls.submit(emulated, sums.double)
    assert ready(emulated)
    backend = emulated.backend
    if in_flight:
        submission = emulated.submit([sums.double])
        submission._queue._prepare(submission.work)
    values = floats(sums.buffer)
    emulated.close()
    assert not backend.queue._ahead._ready
    assert values[0] == (8 if in_flight else 4)
    del sums, values
    gc.collect()
    assert not gpu.live
    assert not broken


def test_everything_is_dropped_at_once(gpu: Gpu, calls: Calls) -> None:
    """With a command buffer in flight, and another encoded ahead: both go, and then what they use."""
    with installed(gpu):
        device = open_device("metal")
        sums = Sums(device)
        for _ in range(2):
            calls.submit(device, sums.double)
        submission = device.submit([sums.double])
        submission._queue._prepare(submission.work)
        assert ready(device)
        values = floats(sums.buffer)
        del device, sums, submission
        gc.collect()
        assert values[0] == 4
        gpu.progress()
        assert values[0] == 8
        open_device("metal").close()
        gc.collect()
    assert not gpu.live


def test_an_interrupt_while_encoding_ahead(emulated: Device, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The submission goes on; no encoder is left open; the next submissions are as if nothing had been."""
    sums = Sums(emulated)
    calls.submit(emulated, sums.double)
    submission = emulated.submit([sums.double])
    encode = type(sums.double.recording).encode

    def interrupted(recording: object, stream: object) -> None:
        encode(recording, stream)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(sums.double.recording), "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            submission.wait()
    submission.wait()
    for _ in range(3):
        calls.submit(emulated, sums.double)
    assert sums.value == 2**5
    assert not broken


def test_threads_that_wait_for_one_submission(emulated: Device, calls: Calls) -> None:
    """Only one of them encodes the next."""
    sums = Sums(emulated)
    calls.submit(emulated, sums.double)
    submission = emulated.submit([sums.double])
    encoded = bridge.calls["dispatchThreadgroups:threadsPerThreadgroup:"]
    threads = [threading.Thread(target=submission.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bridge.calls["dispatchThreadgroups:threadsPerThreadgroup:"] <= encoded + 1
    calls.submit(emulated, sums.double)
    assert sums.value == 8


def test_lists_with_passes_of_a_library(emulated: Device, calls: Calls) -> None:
    """They are never encoded ahead: the numbers of the event between passes must grow from commit to commit."""
    with Bench(emulated) as bench:
        operations, out, want = chain(bench)
        commands = record(bench, *operations)
        assert gemms(commands)
        calls.submit(emulated, commands)
        check(bench.get(out), want)
        assert calls.submit(emulated, commands) == calls.submit(emulated, commands)
        assert not ready(emulated)
        commands.close()
