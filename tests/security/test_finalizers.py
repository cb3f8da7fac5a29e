"""Garbage is collected in the middle of other work, on any thread: finalizers must not wait for a lock."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from tests.host.probe import PAGE, Probe, command, tensor
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, Limits
from wasmetal.device import Device
from wasmetal.host.runtime import runtime
from wasmetal.models import Model, load_model

PATIENCE = 30.0
"""Seconds after which something is held to wait for ever."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("finalizers") / "tiny.gguf")


@pytest.fixture(params=["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def device(request: pytest.FixtureRequest) -> Device:
    """Devices that are not emulated in Python: these tests collect garbage all the time."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def model(device: Device, path: Path) -> Iterator[Model]:
    with load_model(path, device) as model:
        yield model


class Cycle:
    """Keeps things alive until garbage is collected."""

    def __init__(self, *things: object) -> None:
        self.things = things
        self.itself = self


def while_another_holds(lock: AbstractContextManager[object], function: Callable[[], object]) -> None:
    """Call the function, which must return, while another thread holds the lock."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            release.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    worker = threading.Thread(target=function, daemon=True)
    holder.start()
    held.wait()
    worker.start()
    worker.join(PATIENCE / 2)
    hangs = worker.is_alive()
    release.set()
    holder.join()
    assert not hangs


def test_a_session_needs_no_lock(model: Model) -> None:
    def use() -> None:
        session = model.session()
        session.forward(list(range(40)), None)
        Cycle(session)

    gc.collect()
    free = model.cache.free
    use()
    while_another_holds(model.lock, gc.collect)
    assert model.cache.free == free
    session = model.session()
    session.forward([1], None)
    while_another_holds(model.lock, session.close)
    assert model.cache.free == free


def test_a_guest_needs_no_lock(device: Device, model: Model) -> None:
    """Neither its device's nor its model's. It is closed when the next guest is used."""

    def use() -> None:
        probe = Probe(device, models={"m": model})
        probe.put(PAGE, b"m")
        assert probe.model_open(PAGE, 1, probe.OUT) == 0
        assert probe.session_open(probe.u32(), probe.OUT) == 0
        x = tensor(probe.share(), (4,))
        probe.start(command(9, x, x, x))
        Cycle(probe)

    gc.collect()
    with Guest(b'(module (func (export "f")))') as other:
        other.call("f")
        before = set(runtime().creator.regions())
        use()
        queue = Probe(device)
        share = queue.guest._context.interfaces["wasmetal_gpu"]._device.share  # type: ignore[attr-defined]
        while_another_holds(model.lock, lambda: while_another_holds(share._queue.changed, gc.collect))
        queue.guest.close()
        other.call("f")
        assert set(runtime().creator.regions()) == before


def test_many_dropped_guests_are_closed_at_once() -> None:
    """However many: they are not closed one within the other."""
    with Guest(b'(module (func (export "f")))') as guest:
        before = set(runtime().creator.regions())
        for each in [Guest(b'(module (memory (export "memory") 1))') for _ in range(1100)]:
            Cycle(each)
        del each
        gc.collect()
        guest.call("f")
        assert set(runtime().creator.regions()) == before


def test_garbage_everywhere(device: Device, path: Path) -> None:
    """A guest computes, the embedder decodes, sessions and guests become cyclic garbage, all at once."""
    errors: list[BaseException] = []
    threshold = gc.get_threshold()

    def repeat(work: Callable[[], object]) -> None:
        try:
            for _ in range(15):
                work()
        except BaseException as error:
            errors.append(error)

    with load_model(path, device) as model:

        def decode() -> None:
            session = model.session()
            session.forward([1, 2, 3], None)
            Cycle(session, session.fork())

        def come_and_go() -> None:
            Cycle(Guest(b'(module (memory (export "memory") 1))', device=device, models={"m": model}))

        with Probe(device, limits=Limits()) as probe:
            x = tensor(probe.share(), (4,))

            def compute() -> None:
                probe.run(*[command(9, x, x, x)] * 20)

            works = (decode, decode, come_and_go, compute)
            threads = [threading.Thread(target=repeat, args=[work], daemon=True) for work in works]
            gc.set_threshold(10, 1, 1)
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(2 * PATIENCE)
                    assert not thread.is_alive(), "a deadlock"
            finally:
                gc.set_threshold(*threshold)
        gc.collect()
        assert model.cache.free == len(model.cache._references)
    assert errors == []


def test_a_dropped_guest_is_deleted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread that closes it, and not by the garbage collector, perhaps at the same time."""
    deleted: list[int] = []
    delete = wasmtime.Store._delete

    def noted(self: wasmtime.Store, pointer: Any) -> None:
        deleted.append(ctypes.addressof(pointer.contents))
        delete(self, pointer)

    gc.collect()
    monkeypatch.setattr(wasmtime.Store, "_delete", noted)
    guest = Guest(b"(module)")
    Cycle(guest)
    del guest
    gc.collect()
    assert deleted == []
    Guest(b"(module)").close()
    assert len(deleted) == len(set(deleted)) == 2
