"""Snapshots in Ray's object store, on several Ray nodes of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from tests.cluster.kills import kill_under_load
from tests.cluster.nodes import Nodes, number, settings, up, wait_until
from wasmetal.actor.store import ActorHeldError, Store
from wasmetal.cluster.connection import Connection
from wasmetal.cluster.objects import KEEPER, store_of
from wasmetal.errors import SnapshotError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def store(nodes: tuple[Nodes, list[Any]], request: pytest.FixtureRequest) -> Iterator[Store]:
    with Connection(nodes[0].address):
        yield store_of(settings(f"ray-objects://{request.node.name}"))


def manifest(store: Store, actor_id: str, *chunks: bytes) -> dict[str, Any]:
    """Save a snapshot with these chunks."""
    with store.saving(actor_id) as saving:
        named = sorted([saving.put(data), len(data)] for data in chunks)
        saving.commit(found := {"kind": "wasmetal-actor", "version": 1, "chunks": named})
    return found


def dead(actor: Any) -> bool:
    """Whether an actor of Ray's does not answer any more."""
    try:
        ray.get(actor.under.remote("/"))
    except RayError:
        return True
    return False


def test_snapshots_are_saved_and_loaded(store: Store) -> None:
    large, small = bytes(range(256)) * 4096, b"small"
    saved = manifest(store, "a", large, small)
    with store.load("a") as loaded:
        assert loaded.manifest == saved
        assert {bytes(loaded.get(digest, size)) for digest, size in saved["chunks"]} == {large, small}
    assert store.actors() == ["a"]
    assert store.entry("a").actor_id == "a"
    manifest(store, "a", small)
    with store.load("a") as loaded:
        assert len(loaded.chunks) == 1
    store.delete("a")
    assert store.actors() == []
    with pytest.raises(SnapshotError, match="there is no snapshot of actor a"):
        store.load("a")


def test_an_actor_has_one_lease(store: Store) -> None:
    with store.lease("a"), pytest.raises(ActorHeldError):
        store.lease("a")
    store.lease("a").close()


def test_a_keeper_that_is_gone_is_one_line(store: Store) -> None:
    manifest(store, "a", b"lost")
    keeper = ray.get_actor(KEEPER)
    ray.kill(keeper)
    wait_until(lambda: dead(keeper))
    with pytest.raises(SnapshotError, match=r"^cannot load actor a: Ray's object store does not answer: .*$"):
        store.load("a")


def test_without_ray_it_is_refused() -> None:
    assert not ray.is_initialized()
    with pytest.raises(SnapshotError, match="this process has no connection to Ray"):
        store_of(settings("ray-objects://a"))


def test_a_dead_nodes_actors_go_on_elsewhere(nodes: tuple[Nodes, list[Any]]) -> None:
    chosen = settings("ray-objects://life", worker={"worker": 1})
    chosen = replace(chosen, store_options={"lease_seconds": 4.0})
    with up(chosen, nodes[0]) as cluster:
        assert [number(cluster.send("a", "i")) for _ in range(3)] == [1, 2, 3]
    with up(chosen, nodes[0]) as cluster:  # what was kept is still there
        assert number(cluster.send("a", "i")) == 4
    kill_under_load(*nodes, "ray-objects://load", actors=4, messages=25)
