"""Nodes that are killed while messages are on their way: none that was acknowledged is lost, none is handled twice.

``python -m tests.cluster.kills --rounds 20``
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.cluster.nodes import Nodes, number, running, settings, up
from wasmetal.cluster import Cluster


def kill_under_load(
    nodes: Nodes, workers: list[Any], store: Path | str, *, actors: int, messages: int
) -> dict[str, float]:
    """Kill one of the nodes while each of some threads sends messages to an actor of its own. Raises AssertionError.

    Each reply has the number of messages that the actor has handled: it must count them without a gap. Returns what
    was seen. ``workers``: the nodes, of which the one that is killed is replaced.
    """
    errors: list[str] = []
    acknowledged = [0] * actors
    slowest = [0.0] * actors

    def talk(cluster: Cluster, index: int) -> None:
        try:
            for sent in range(1, messages + 1):
                begun = time.monotonic()
                got = number(cluster.send(f"a{index}", "i", key=f"{index} {sent}"))
                assert got == sent, f"actor {index}: message {sent} has number {got}"
                acknowledged[index] = sent
                slowest[index] = max(slowest[index], time.monotonic() - begun)
        except BaseException as error:
            errors.append(f"{type(error).__name__}: {error}")

    with up(settings(store, worker={"worker": 1}), nodes, workers=len(workers)) as cluster:
        threads = [threading.Thread(target=talk, args=(cluster, index)) for index in range(actors)]
        for thread in threads:
            thread.start()
        while sum(acknowledged) < actors * messages * random.uniform(0.2, 0.5) and not errors:
            time.sleep(0.01)
        placed = {node["node"]: node["actors"] for node in cluster.status()["nodes"]}
        victim = workers.pop(random.randrange(len(workers)))
        before = sum(acknowledged)
        nodes.kill(victim)
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert acknowledged == [messages] * actors
        assert before < actors * messages, "the node was killed too late"
        held = [actor_id for node in cluster.status(actors=True)["nodes"] for actor_id in node["actor_ids"]]
        assert sorted(held) == sorted(f"a{index}" for index in range(actors)), held  # each at one node
    workers.append(nodes.add(worker=1))
    return {
        "messages": actors * messages,
        "acknowledged before": before,
        "actors of the dead node": placed.get(victim.node_id, 0),
        "slowest seconds": round(max(slowest), 2),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--actors", type=int, default=8)
    parser.add_argument("--messages", type=int, default=60, help="to each actor")
    args = parser.parse_args()
    with running(3) as (nodes, workers):
        for round_ in range(1, args.rounds + 1):
            with tempfile.TemporaryDirectory() as folder:
                seen = kill_under_load(
                    nodes, workers, Path(folder, "store"), actors=args.actors, messages=args.messages
                )
            print(f"{round_}: {seen}", flush=True)


if __name__ == "__main__":
    main()
