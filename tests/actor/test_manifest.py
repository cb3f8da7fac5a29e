"""Manifests that are hostile: always a SnapshotError, and nothing is made of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actor.guests import probe, probe_actor_text, wat
from tests.host.probe import PAGE
from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, ActorProgram, Snapshot, load_model
from wasmetal.actor import actor as actor_module
from wasmetal.actor.manifest import Manifest
from wasmetal.device import Device
from wasmetal.errors import SnapshotError
from wasmetal.host.errno import Errno

T = TypeVar("T")

CHANGING = "(global (mut f64) (f64.const 1)) (table $t 1 funcref) (func (table.set $t (i32.const 0) (ref.null func)))"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, cpu: Device) -> Iterator[tuple[Snapshot, ActorProgram, Any]]:
    """A snapshot with something of every kind, its program, and the model it needs."""
    program = wat(probe_actor_text(extra=CHANGING))
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with load_model(path, cpu) as model:
        grants = {"m": model}
        with Actor(program, models=grants, args=["a"], env={"B": "c"}, id="frozen") as actor:
            p = probe(actor)
            p.put(4096, np.random.default_rng(0).bytes(1000))
            p.buffer_write(p.allocate(5000), 100, 4096, 900)
            gone = p.allocate(64)
            p.share(PAGE, PAGE)
            p.timer_set(10**15)
            p.model_open(128, p.put(128, b"m"), p.OUT)
            p.session_open(p.u32(), p.OUT)
            tokens = np.arange(40, dtype=np.uint32)
            assert p.session_forward(p.u32(), 1024, p.put(1024, tokens) // 4, 0) == Errno.SUCCESS
            p.buffer_destroy(gone)
            yield actor.freeze(), program, model


def test_a_manifest_survives_json(scene: tuple[Snapshot, ActorProgram, Any]) -> None:
    snapshot, program, model = scene
    value = json.loads(json.dumps(snapshot.manifest.to_json()))
    assert Manifest.from_json(value) == snapshot.manifest
    assert value["version"] == 1
    assert value["kind"] == "wasmetal-actor"
    assert value["chunks"] == sorted(value["chunks"])
    assert len(value["chunks"]) == 4  # a page of memory, a buffer, two blocks of a session; the table is null
    with Actor.thaw(snapshot, program, models={"m": model}) as thawed:
        assert thawed.freeze().manifest.handles == snapshot.manifest.handles


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything in a value is."""
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(each, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2**20, 2**31, 2**32, 2**47, 2**62, 2**63, 2**64, 1e308, float("inf"), float("nan")]),
    st.floats(),
    st.text(max_size=70),
    st.sampled_from(
        ["0" * 64, "ff" * 32, "I32", "FUNCREF", "folder", "stdin", "session", "model", "../../etc", "\ud800"]
    ),
    st.lists(st.integers(0, 5), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


@settings(max_examples=400)
@given(st.data())
def test_one_wrong_value_anywhere(scene: tuple[Snapshot, ActorProgram, Any], data: st.DataObject) -> None:
    """It is refused, or it is a manifest like any other; then thawing refuses it, or it is an actor like any other."""
    snapshot, program, model = scene
    value = json.loads(json.dumps(snapshot.manifest.to_json()))
    everywhere = list(paths(value))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(everywhere))
        other = data.draw(st.sampled_from(everywhere))
        try:
            new = data.draw(junk | st.just(at(value, other)))
            value = changed(value, path, new)
        except (KeyError, IndexError, TypeError):  # the first change has removed what the second was to change
            continue
    if (manifest := refused(lambda: Manifest.from_json(value))) is None:
        return
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    free = model.cache.free
    if thawed := refused(lambda: Actor.thaw(Snapshot(manifest, snapshot.chunks), program, models={"m": model})):
        thawed.close()
    model.reclaim()
    assert model.cache.free == free


def refused(make: Callable[[], T]) -> T | None:
    """What is made; None if that is refused, in one line."""
    try:
        return make()
    except SnapshotError as error:
        message = str(error)
    assert "\n" not in message
    return None


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    ("path", "new", "why"),
    [
        (("version",), 2, "version 2; 'wasmetal-actor', version 1 is known"),
        (("kind",), "other", "kind 'other'"),
        (("version",), True, "version is True"),
        (("memories", 0, "pages"), 2**60, "pages"),
        (("memories", 0, "pages"), 65536, "4294967296 bytes of memory|memory 0 cannot have"),
        (("memories", 0, "pages"), 0, "content"),
        (("memories",), [], "memories, globals and tables are not those|list of chunks"),
        (("globals", 0, "type"), "I64", "not those of the program|value"),
        (("globals",), [], "not those of the program"),
        (("tables", 0, "size"), 2**40, "size"),
        (("tables", 0, "size"), 0, "larger when it is new"),
        (("tables", 0, "functions"), ["00" * 32, 8], "functions"),
        (("handles", "free"), [0], "which is taken"),
        (("handles", "free"), [], "generation of slot"),
        (("handles", "held"), [], "generation of slot|list of chunks"),
        (("handles", "generations"), [0] * (2**19 + 1), "generations"),
        (("models",), {}, "the model of a handle"),
        (("chunks",), [], "list of chunks"),
        (("random", "seed"), "00", "seed"),
        (("descriptors", 0, "stands_for"), "folder", "folder"),
        (("descriptors", 0, "number"), 5, "order of a descriptor"),
        (("actor",), "x" * 300, "actor"),
        (("extra",), 1, "unknown extra"),
    ],
)
def test_what_is_wrong_is_named(
    scene: tuple[Snapshot, ActorProgram, Any], path: tuple[Any, ...], new: Any, why: str
) -> None:
    snapshot, program, model = scene
    value = json.loads(json.dumps(snapshot.manifest.to_json()))
    at(value, path[:-1])[path[-1]] = new
    with pytest.raises(SnapshotError, match=why):
        Actor.thaw(Snapshot(Manifest.from_json(value), snapshot.chunks), program, models={"m": model})


@pytest.mark.parametrize(
    ("kind", "field", "new"),
    [("shared_buffer", "bytes", 2**61), ("shared_buffer", "offset", 1), ("device_buffer", "bytes", 1 + (4 << 30))],
)
def test_what_does_not_fit_is_refused_before_a_guest_is_made(
    scene: tuple[Snapshot, ActorProgram, Any], monkeypatch: pytest.MonkeyPatch, kind: str, field: str, new: int
) -> None:
    snapshot, program, model = scene
    value = json.loads(json.dumps(snapshot.manifest.to_json()))
    held = next(each for each in value["handles"]["held"] if each["kind"] == kind)
    held[field] = new
    if kind == "device_buffer":
        value["chunks"].remove(held["content"].pop()[1])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a guest was made")

    monkeypatch.setattr(actor_module, "ActorGuest", never)
    with pytest.raises(SnapshotError, match=r"on the device; the limit|leaves the memory|multiples of 65536"):
        Actor.thaw(Snapshot(Manifest.from_json(value), snapshot.chunks), program, models={"m": model})
