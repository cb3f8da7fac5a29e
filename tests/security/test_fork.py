"""What was opened before ``os.fork`` is refused in the child, and the child can open its own."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import wasmetal
from tests.device.harness import Vectors, recorded
from tests.host.probe import Probe
from tests.models.tiny import write_tiny_llama
from tests.security.apart import run_apart
from wasmetal.device import Device, MemoryKind, abandoned, list_devices
from wasmetal.device.release import on_release
from wasmetal.errors import ForkedError, GuestError, LimitError
from wasmetal.models import Model, Request

GUEST = b"""(module (memory (export "memory") 1) (func (export "f") (result i32) (i32.const 7))
    (func (export "_start") (loop (br 0))))"""
TOKENS = [11, 12, 13, 14, 15]
SECONDS = 2.0
"""How long a child may take to end."""
SLACK = 10.0
"""Seconds that a busy machine may take for what takes none."""


ENDS = pytest.mark.parametrize(
    "end", ["exit", *(pytest.param(end, marks=pytest.mark.slow) for end in ("_exit", "multiprocessing"))]
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("fork") / "tiny.gguf"))


@pytest.fixture(params=["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def name(request: pytest.FixtureRequest) -> str:
    """Every kind of device that the tests have and that a forked process can have."""
    request.getfixturevalue(request.param)  # skips, or fails, if there is none
    return str(request.param)


def in_child(work: Callable[[], None], end: str) -> float:
    """Do the work in a forked child, which must succeed; return the seconds that its end took, after the work."""
    if end == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        return 0.0
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        work()
        os.write(writer, b"done")
        os._exit(0) if end == "_exit" else sys.exit(0)
    os.close(writer)
    assert os.read(reader, 4) == b"done", "the child's standard error says why"
    begin = time.monotonic()
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() - begin < SECONDS + SLACK, "the child does not end"
        time.sleep(0.01)
    assert ended == (child, 0)
    return time.monotonic() - begin


def logits_of(model: Model, tokens: list[int] = TOKENS) -> NDArray[np.float32]:
    logits = model.logits()
    with model.session() as session:
        session.forward(tokens, logits)
    return logits.numpy().copy()


def run_until_stopped(guest: wasmetal.Guest) -> None:
    with contextlib.suppress(GuestError):
        guest.run()


# ---- What the parent opened


def use_the_parents(name: str, path: str, end: str) -> None:
    device = wasmetal.open_device(name)
    model = wasmetal.load_model(path, device)
    expected = logits_of(model)
    session = model.session()
    session.forward(TOKENS, None)
    state = session.save()
    vectors = Vectors(device, 3, 16)
    commands = recorded(device, (vectors[0], vectors[1], vectors[2]))
    submission = device.submit([commands])
    guest, busy = wasmetal.Guest(GUEST, device=device), wasmetal.Guest(GUEST)
    runner = threading.Thread(target=run_until_stopped, args=[busy], daemon=True)
    runner.start()
    some = np.zeros(4, np.uint8)
    uses: dict[str, Callable[[], Any]] = {
        "allocate": lambda: device.allocate(64),
        "record": device.record,
        "submit": lambda: device.submit([commands]),
        "wait": submission.wait,
        "pending": lambda: submission.pending,
        "read": lambda: device.read(vectors.buffer, 0, some),
        "write": lambda: device.write(vectors.buffer, 0, some),
        "view": vectors.buffer.view,
        "model.session": model.session,
        "model.logits": model.logits,
        "model.forward": lambda: model.forward([Request(session, [1])]),
        "session.forward": lambda: session.forward([1], None),
        "session.fork": session.fork,
        "session.truncate": lambda: session.truncate(1),
        "session.save": session.save,
        "session.restore": lambda: session.restore(state),
        "guest.call": lambda: guest.call("f"),
        "guest.run": guest.run,
        "guest.stream": lambda: list(guest.stream()),
        "guest.read": lambda: guest.read(0, 4),
        "guest.stop": guest.stop,
        "a guest that runs in the parent": busy.run,
        "Guest": lambda: wasmetal.Guest(GUEST),
        "Program": lambda: wasmetal.Program(GUEST),
        "Guest on the device": lambda: wasmetal.Guest(GUEST, device=device, models={"m": model}),
    }

    def work() -> None:
        for what, use in uses.items():
            with pytest.raises(ForkedError, match=r'before os.fork.*"spawn", or open it after the fork'):
                print(what, use(), "was not refused", file=sys.stderr)
        submission.abandon()
        for each in (guest, busy, session, model, commands, vectors.buffer, device):
            each.close()
        gc.collect()

    print(in_child(work, end))
    submission.wait()
    assert (logits_of(model) == expected).all()
    assert session.save() == state
    assert guest.call("f") == 7
    busy.close()
    runner.join(SLACK)
    assert not runner.is_alive()
    for each in (guest, session, model, device):
        each.close()


@ENDS
def test_a_child_cannot_use_what_its_parent_opened(name: str, end: str, path: str) -> None:
    """And leaves it as it was, and ends soon."""
    assert float(run_apart(use_the_parents, name, path, end)) < SECONDS + SLACK


def drop_the_parents() -> None:
    class Owner:
        pass

    released: list[str] = []
    asked: list[int] = []
    owners = [Owner()]
    on_release(owners[0], released.append, "the parent's")
    abandoned.keep(lambda: bool(asked.append(os.getpid())), owners[0])
    asked.clear()

    def work() -> None:
        owners.clear()
        abandoned.release_ended()
        abandoned._kept.clear()
        assert released == []
        assert asked == []
        own = Owner()
        on_release(own, released.append, "the child's")
        del own
        assert released == ["the child's"]

    in_child(work, "_exit")
    owners.clear()
    abandoned.release_ended()
    assert asked == [os.getpid()]
    abandoned._kept.clear()
    assert released == ["the parent's"]


def test_a_child_does_not_release_what_a_driver_holds_for_its_parent() -> None:
    run_apart(drop_the_parents)


def write_to_the_parents(path: str) -> None:
    """Through arrays that were made before the fork, which nothing can refuse."""
    device = wasmetal.open_device("cpu")
    model = wasmetal.load_model(path, device)
    probe = Probe(device)
    buffers = [model.cache.layers[0][0].buffer, device.allocate(4096), device.allocate(4096, MemoryKind.SHARED)]
    views = [*(buffer.view() for buffer in buffers), probe.bytes]
    before = [view.copy() for view in views]

    def work() -> None:
        for view in views:
            view[:] = 255

    in_child(work, "_exit")
    for view, bytes_ in zip(views, before, strict=True):
        assert (view == bytes_).all()


def test_memory_is_not_shared_with_a_child(path: str) -> None:
    run_apart(write_to_the_parents, path)


# ---- What the child opens


def open_its_own(name: str, path: str, end: str) -> None:
    if name == "cpu":  # not so a GPU, whose driver must not have been loaded before
        device = wasmetal.open_device(name)
        model = wasmetal.load_model(path, device)
        logits_of(model)

    def work() -> None:
        with wasmetal.open_device(name) as own, wasmetal.load_model(path, own) as own_model:
            np.save(f"{path}.npy", logits_of(own_model))
            with wasmetal.Guest(GUEST, device=own, models={"m": own_model}) as guest:
                assert guest.call("f") == 7
            limits = wasmetal.Limits(wall_seconds=0.2)
            with wasmetal.Guest(GUEST, limits=limits) as guest, pytest.raises(LimitError):
                guest.run()

    print(in_child(work, end))
    if name != "cpu":
        device = wasmetal.open_device(name)
        model = wasmetal.load_model(path, device)
    assert (logits_of(model) == np.load(f"{path}.npy")).all()
    model.close()
    device.close()


@ENDS
def test_a_child_can_open_its_own(name: str, end: str, path: str) -> None:
    assert float(run_apart(open_its_own, name, path, end)) < SECONDS + SLACK


def open_a_gpu_again() -> None:
    def work() -> None:
        for attempt in lambda: wasmetal.open_device("vulkan"), wasmetal.open_device, list_devices:
            with pytest.raises(ForkedError, match="the vulkan driver was opened before"):
                attempt()
        wasmetal.open_device("cpu").close()

    list_devices()
    assert in_child(work, "exit") < SECONDS + SLACK


@pytest.mark.vulkan
def test_a_child_cannot_open_a_gpu_whose_driver_its_parent_loaded(vulkan: Device) -> None:
    """Mesa's driver, for one, would work, and then wait for ever at exit for a thread of the parent."""
    run_apart(open_a_gpu_again)


# ---- Forks at any moment


def fork_while_guests_come_and_go() -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            with wasmetal.Guest(GUEST) as guest:
                guest.call("f")

    churners = [threading.Thread(target=churn, daemon=True) for _ in range(2)]
    for each in churners:
        each.start()
    for _ in range(40):
        in_child(lambda: None, "exit")
    stop.set()
    for each in churners:
        each.join()


@pytest.mark.slow
def test_forks_while_guests_come_and_go() -> None:
    run_apart(fork_while_guests_come_and_go, timeout=170)
