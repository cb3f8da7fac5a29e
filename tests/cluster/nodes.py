"""Several Ray nodes on this machine, running the obedient actors of ``tests/actor/hosts.py``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wasmtime

from tests.actor.hosts import OBEDIENT
from wasmetal.cluster import Cluster, ClusterReply, ClusterSettings, ClusterType

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.cluster_utils import Cluster as RayCluster

OBEDIENT_WASM = bytes(wasmtime.wat2wasm(OBEDIENT))


def settings(store: Path | str, **types: dict[str, float]) -> ClusterSettings:
    """Of a cluster of obedient actors. ``types``: the resources that each type needs; by default one without."""
    return ClusterSettings(
        store=str(store),
        types={
            name: ClusterType(program=OBEDIENT_WASM, wall_seconds=30, resources=needs)
            for name, needs in (types or {"obedient": {}}).items()
        },
        host={"resident": 4, "workers": 2},
    )


class Nodes:
    """A Ray cluster whose nodes are processes of this machine."""

    def __init__(self) -> None:
        self.cluster = RayCluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "resources": {"head": 1}}
        )
        self.address = self.cluster.address

    def add(self, **resources: float) -> Any:
        """One node more."""
        return self.cluster.add_node(num_cpus=1, resources=resources)

    def kill(self, node: Any) -> None:
        """End a node as a power cut would."""
        self.cluster.remove_node(node, allow_graceful=False)


@contextmanager
def running(count: int) -> Iterator[tuple[Nodes, list[Any]]]:
    """A cluster of a head, which runs no actors unless a type asks for nothing, and so many nodes more."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    nodes = Nodes()
    try:
        yield nodes, [nodes.add(worker=1) for _ in range(count)]
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


@contextmanager
def up(chosen: ClusterSettings, nodes: Nodes, *, workers: int = 2) -> Iterator[Cluster]:
    """A cluster of so many hosts, which is ended at the end; then nothing may have gone wrong."""
    with Cluster.up(chosen, nodes.address) as cluster:
        errors = ["not asked"]
        try:
            wait_until(lambda: len(cluster.status()["nodes"]) == workers)
            yield cluster
        finally:
            errors = cluster.down()
        assert errors == []


def number(reply: ClusterReply) -> int:
    """The number that it ends with."""
    return int.from_bytes(reply.read()[-4:], "little")


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds. Raises AssertionError if it does not in time."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it has not come about"
        time.sleep(0.1)
