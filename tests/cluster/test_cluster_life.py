"""How clusters begin and end, and what becomes of their actors when nodes die."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import CliRunner

from tests.cluster.kills import kill_under_load
from tests.cluster.nodes import OBEDIENT_WASM, Nodes, number, settings, up, wait_until
from wasmetal.cli.app import app
from wasmetal.cluster import Cluster
from wasmetal.errors import ClusterError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_timer_is_woken_after_a_restart(nodes: tuple[Nodes, list[Any]], tmp_path: Path) -> None:
    chosen = settings(tmp_path / "store", worker={"worker": 1})
    in_seconds = 4
    with up(chosen, nodes[0]) as cluster:
        sent = time.time()
        assert number(cluster.send("a", b"s" + struct.pack("<q", in_seconds * 10**9))) == 1
    with up(chosen, nodes[0]) as cluster:
        time.sleep(max(0.0, sent + in_seconds - time.time()))
        wait_until(lambda: sum(node["host"]["messages"] for node in cluster.status()["nodes"]) > 0)
        assert number(cluster.send("a", "i")) == 1002


def test_no_cluster_is_one_line(nodes: tuple[Nodes, list[Any]]) -> None:
    with pytest.raises(ClusterError, match=r"^no actors run on this Ray cluster: .*`wasmetal cluster up SETTINGS`$"):
        Cluster(nodes[0].address)


def test_a_connection_to_ray_ends_with_who_made_it(nodes: tuple[Nodes, list[Any]], tmp_path: Path) -> None:
    chosen = settings(tmp_path / "store", worker={"worker": 1})
    with up(chosen, nodes[0]) as cluster:
        with Cluster(nodes[0].address):
            pass
        assert number(cluster.send("a", "i")) == 1
    assert not ray.is_initialized()
    with pytest.raises(ClusterError):
        Cluster(nodes[0].address)
    assert not ray.is_initialized()
    ray.init(address=nodes[0].address, log_to_driver=False, configure_logging=False)
    try:
        with up(chosen, nodes[0]) as cluster:
            assert number(cluster.send("a", "i")) == 2
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_what_no_node_has(nodes: tuple[Nodes, list[Any]], tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no node can run actors: none has the resources of any type"):
        Cluster.up(settings(tmp_path / "store", worker={"unobtainium": 1}), nodes[0].address, seconds=2)


def test_a_node_that_is_killed_under_load(nodes: tuple[Nodes, list[Any]], tmp_path: Path) -> None:
    """``python -m tests.cluster.kills`` does this as often as one likes."""
    kill_under_load(*nodes, tmp_path / "store", actors=4, messages=25)


def test_a_directory_that_dies_learns_where_actors_are(nodes: tuple[Nodes, list[Any]], tmp_path: Path) -> None:
    with up(settings(tmp_path / "store", worker={"worker": 1}), nodes[0]) as cluster:
        assert number(cluster.send("a", "i")) == 1
        before = cluster.status(actors=True)["nodes"]
        ray.kill(cluster._directory, no_restart=False)
        assert number(cluster.send("a", "i")) == 2
        wait_until(lambda: len(cluster.status()["nodes"]) == len(before))
        after = cluster.status(actors=True)["nodes"]
        where = [[node["node"] for node in found if node["actor_ids"] == ["a"]] for found in (before, after)]
        assert where[0] == where[1]


def test_the_command_line(nodes: tuple[Nodes, list[Any]], tmp_path: Path) -> None:
    Path(tmp_path, "obedient.wasm").write_bytes(OBEDIENT_WASM)
    Path(tmp_path, "cluster.toml").write_text(
        f'''store = "{tmp_path}/store"
        [types.obedient]
        program = "obedient.wasm"
        resources = {{ worker = 1 }}
        [host]
        resident = 4'''
    )

    def wasmetal(*arguments: str) -> Any:
        shown = CliRunner().invoke(app, ["cluster", *arguments, "--address", nodes[0].address])
        assert shown.exit_code == 0, shown.output
        return shown

    assert "up" in wasmetal("up", str(tmp_path / "cluster.toml")).stdout
    assert wasmetal("send", "ann", "i").stdout_bytes == b"\1\0\0\0"
    wait_until(lambda: len(json.loads(wasmetal("status", "--json").stdout)["nodes"]) == 2)
    status = json.loads(wasmetal("status", "--json", "--actors").stdout)
    other = next(node for node in status["nodes"] if node["actor_ids"] == [])
    assert wasmetal("migrate", "ann", other["node"][:16]).stdout.strip() == other["node"]
    assert wasmetal("send", "ann", "i", "--key", "k").stdout_bytes == b"\2\0\0\0"
    assert wasmetal("send", "ann", "i", "--key", "k").stdout_bytes == b"\2\0\0\0"
    assert other["node"][:8] in wasmetal("status").stdout
    wasmetal("down")
    shown = CliRunner().invoke(app, ["cluster", "status", "--address", nodes[0].address])
    assert shown.exit_code == 2
    assert shown.stderr.startswith("wasmetal: no actors run on this Ray cluster")
