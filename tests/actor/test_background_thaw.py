"""Actors thawed from memory, whose sessions get their tokens from another thread while the actor takes messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest

from tests.actor.guests import probe, probe_program
from tests.host.probe import Probe
from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, Snapshot, load_model
from wasmetal.actor.chunks import MemoryChunks
from wasmetal.device import Device
from wasmetal.errors import DeviceError, OutOfDeviceMemoryError, SnapshotError
from wasmetal.host.errno import Errno
from wasmetal.host.functions.llm import OpenSession
from wasmetal.models import Model, Session
from wasmetal.models.lm.kv_cache import PAGE_SIZE, KVCache, page_count

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds that a busy machine may take for what takes none."""
TOKENS = 150


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cpu: Device) -> Iterator[Model]:
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=256)
    with load_model(path, cpu, contexts=4) as loaded:
        yield loaded


def frozen(model: Model, *, forked: bool = False) -> tuple[Snapshot, list[bytes]]:
    """An actor with a session, and perhaps one that begins with the same tokens; and their keys and values."""
    with Actor(probe_program(), models={"m": model}) as actor:
        p = probe(actor)
        assert p.model_open(128, p.put(128, b"m"), p.OUT) == Errno.SUCCESS
        assert p.session_open(p.u32(), p.OUT) == Errno.SUCCESS
        first = p.u32()
        tokens = np.random.default_rng(0).integers(0, 200, TOKENS).astype(np.uint32)
        assert p.session_forward(first, 8192, p.put(8192, tokens) // 4, 0) == Errno.SUCCESS
        if forked:
            assert p.session_fork(first, p.OUT) == Errno.SUCCESS
            assert p.session_forward(p.u32(), 8192, 3, 0) == Errno.SUCCESS
        return actor.freeze(), rows(actor)


def held(actor: Actor) -> list[OpenSession]:
    return [each for _, each in actor._guest.handles.items() if isinstance(each, OpenSession)]


def rows(actor: Actor) -> list[bytes]:
    return [each.session.rows(0, [each.session.length])[0].tobytes() for each in held(actor)]


class Gate:
    """Holds up whoever writes keys and values."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        write = Session._append_rows

        def held_up(session: Session, *args: Any) -> None:
            self.begun.set()
            assert self.open.wait(PATIENCE)
            write(session, *args)

        monkeypatch.setattr(Session, "_append_rows", held_up)


def free(model: Model) -> int:
    model.reclaim()
    return model.cache.free


def length(actor: Actor) -> int:
    """Of its first session, as the guest is told."""
    p, found = probe(actor), actor._guest.handles
    slot = next(slot for slot, each in found.items() if isinstance(each, OpenSession))
    assert p.session_length(found.handle(slot), p.OUT) == Errno.SUCCESS
    return p.u32()


def later(action: Callable[[], T], gate: Gate) -> T:
    """What an action returns that waits for the gate, which is opened now. Raises what the action does."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(action())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    gate.open.set()
    thread.join(PATIENCE)
    if errors:
        raise errors[0]
    return results[0]


def test_it_takes_messages_before_its_sessions_have_their_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, expected = frozen(model)
    gate = Gate(monkeypatch)
    with Actor.thaw(snapshot, probe_program(), models={"m": model}) as actor:
        assert gate.begun.wait(PATIENCE)
        assert not gate.open.is_set()
        assert probe(actor).model_open(128, 1, Probe.OUT) == Errno.SUCCESS  # what needs no session goes on
        assert later(lambda: length(actor), gate) == TOKENS
        assert rows(actor) == expected


@pytest.mark.parametrize("what", ["freeze", "fork"])
def test_what_needs_the_tokens_waits_for_them(model: Model, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    snapshot, expected = frozen(model)
    gate = Gate(monkeypatch)
    with Actor.thaw(snapshot, probe_program(), models={"m": model}) as actor:
        made = later(getattr(actor, what), gate)
        if isinstance(made, Actor):
            with made:
                assert rows(made) == rows(actor) == expected
        else:
            assert made.manifest.handles == snapshot.manifest.handles


def test_a_session_that_begins_like_another_shares_its_pages(model: Model) -> None:
    snapshot, expected = frozen(model, forked=True)
    with Actor.thaw(snapshot, probe_program(), models={"m": model}) as actor:
        assert rows(actor) == expected
        one, other = (each.session.pages for each in held(actor))
        assert one[: TOKENS // PAGE_SIZE] == other[: TOKENS // PAGE_SIZE]


def test_closing_waits_and_gives_back_the_pages(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, _ = frozen(model)
    before = free(model)
    gate = Gate(monkeypatch)
    actor = Actor.thaw(snapshot, probe_program(), models={"m": model})
    assert gate.begun.wait(PATIENCE)
    assert free(model) == before - page_count(TOKENS)
    later(actor.close, gate)
    assert free(model) == before


def test_a_device_that_fails_is_told_of_where_the_tokens_are_needed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, _ = frozen(model)
    before = free(model)

    def fail(cache: KVCache, *_: Any) -> None:
        raise DeviceError("the copy failed")

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "write", fail)
        with Actor.thaw(snapshot, probe_program(), models={"m": model}) as actor:
            for _ in range(2):
                with pytest.raises(DeviceError, match="the copy failed"):
                    actor.freeze()
            assert free(model) == before
    assert free(model) == before


def test_what_can_be_known_before_is_refused_before(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, _ = frozen(model)
    before = free(model)
    monkeypatch.setattr(KVCache, "write", None)
    missing = Snapshot(snapshot.manifest, MemoryChunks())
    with pytest.raises(SnapshotError, match="is missing"):
        Actor.thaw(missing, probe_program(), models={"m": model})
    with model.session() as session:
        with model.lock:
            model.cache.extend(session.pages, model.cache.free - page_count(TOKENS) + 1)
        with pytest.raises(OutOfDeviceMemoryError, match="no room"):
            Actor.thaw(snapshot, probe_program(), models={"m": model})
    assert free(model) == before
