"""Actors on several Ray nodes of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.nodes import Nodes, number, settings, up
from wasmetal.actor.store import DirectoryStore
from wasmetal.cluster import Cluster
from wasmetal.errors import GuestError, GuestTrapError, SnapshotError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster") / "store"


@pytest.fixture(scope="module")
def cluster(nodes: tuple[Nodes, list[Any]], store: Path) -> Iterator[Cluster]:
    with up(settings(store, worker={"worker": 1}), nodes[0]) as cluster:
        yield cluster


def places(cluster: Cluster) -> dict[str, str]:
    """The node of each actor."""
    status = cluster.status(actors=True)
    return {actor_id: node["node"] for node in status["nodes"] for actor_id in node["actor_ids"]}


def test_actors_are_spread_and_stay(cluster: Cluster, store: Path) -> None:
    for turn in range(1, 4):
        assert [number(cluster.send(f"a{i}", "i")) for i in range(6)] == [turn] * 6
    where = places(cluster)
    assert sorted(where) == [f"a{i}" for i in range(6)]
    assert sorted(list(where.values()).count(node) for node in set(where.values())) == [3, 3]
    assert DirectoryStore(store).actors() == sorted(where)
    status = cluster.status()
    assert [node["types"] for node in status["nodes"]] == [["worker"]] * 2  # not the head
    assert sum(node["host"]["messages"] for node in status["nodes"]) == 18


def test_an_actor_moves_with_all_it_knows(cluster: Cluster) -> None:
    assert [number(cluster.send("moved", "i")) for _ in range(3)] == [1, 2, 3]
    before = places(cluster)["moved"]
    other = next(node["node"] for node in cluster.status()["nodes"] if node["node"] != before)
    pending = [cluster.send("moved", "i") for _ in range(5)]
    assert cluster.migrate("moved", other[:12]) == other
    assert places(cluster)["moved"] == other
    assert sorted(map(number, pending)) == [4, 5, 6, 7, 8]
    assert number(cluster.send("moved", "i")) == 9
    assert cluster.migrate("moved", other) == other
    with pytest.raises(GuestError, match="no nodes are called 'nowhere'"):
        cluster.migrate("moved", "nowhere")


def test_a_key_is_handled_once_wherever_the_actor_is(cluster: Cluster) -> None:
    assert number(cluster.send("keyed", "i", key="one")) == 1
    other = next(node["node"] for node in cluster.status()["nodes"] if node["node"] != places(cluster)["keyed"])
    cluster.migrate("keyed", other)
    assert number(cluster.send("keyed", "i", key="one")) == 1
    assert number(cluster.send("keyed", "i", key="two")) == 2
    with pytest.raises(GuestError, match="key"):
        cluster.send("keyed", "something else", key="one").read()


def test_a_failure_is_the_senders(cluster: Cluster) -> None:
    assert number(cluster.send("failing", "i")) == 1
    with pytest.raises(GuestTrapError):
        cluster.send("failing", "trap").read()
    assert number(cluster.send("failing", "i")) == 2
    with pytest.raises(GuestError, match="no node has actors of the type 'other'; the 2 nodes have worker"):
        cluster.send("b", "i", type="other")
    with pytest.raises(SnapshotError):
        cluster.send("../a", "i")
    with pytest.raises(SnapshotError, match="there is no snapshot of actor c"):
        cluster.send("c", "i", create=False).read()
