"""``wasmetal cluster``: actors on the nodes of a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import Json
from wasmetal.cli.output import in_bytes, print_json, print_table, writer
from wasmetal.errors import ClusterError

if TYPE_CHECKING:
    from wasmetal.cluster import Cluster

cluster = typer.Typer(
    help="Actors on many machines: start and end them on a Ray cluster, send messages, move actors.",
    no_args_is_help=True,
)

Address = Annotated[
    str,
    typer.Option(
        "--address", metavar="HOST:PORT", envvar="RAY_ADDRESS", help="The Ray cluster; auto: the one on this machine."
    ),
]
Actor = Annotated[str, typer.Argument(metavar="ACTOR", help="The actor's id.")]


@cluster.command()
def up(
    settings: Annotated[Path, typer.Argument(metavar="SETTINGS", help="A TOML file: see docs/cluster.md.")],
    address: Address = "auto",
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Wait so long for a node.")] = 600.0,
) -> None:
    """Have the nodes of a Ray cluster run actors, those that join later too. Returns once a node is ready."""
    from wasmetal.cluster import Cluster, ClusterSettings

    with Cluster.up(ClusterSettings.read(settings), address, seconds=timeout) as joined:
        found = joined.status()
        print(
            f"up: {len(found['nodes'])} nodes ready, {len(found['starting'])} starting; the store is {found['store']}"
        )


@cluster.command()
def status(
    address: Address = "auto",
    actors: Annotated[bool, typer.Option("--actors", help="With --json: the ids of each node's actors, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show the nodes, and what their hosts do."""
    with _joined(address) as joined:
        found = joined.status(actors)
    if as_json:
        print_json(found)
        return
    columns = ("node", "name", "types", "actors", "awake", "messages", "waiting", "memory", "on the device")
    rows = [
        (
            node["node"][:12],
            node["name"],
            ", ".join(node["types"]),
            str(node["actors"]),
            str((host := node["host"])["resident"]),
            str(host["messages"]),
            str(host["queued"]),
            in_bytes(host["memory_bytes"]),
            in_bytes(host["device_bytes"]),
        )
        for node in found["nodes"]
    ]
    print_table(columns, rows)
    for node in found["starting"]:
        print(f"{node[:12]}  starting")
    for failed in found["failed"]:
        print(f"{failed['node'][:12]}  runs no actors: {failed['error']}")


@cluster.command()
def send(
    actor_id: Actor,
    message: Annotated[str | None, typer.Argument(metavar="MESSAGE", help="By default standard input.")] = None,
    kind: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Of a new actor, if there are several.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="Sent again with the same key, it is not handled again.")
    ] = None,
    sender: Annotated[str, typer.Option("--sender", metavar="NAME", help="What the actor is told of the sender.")] = "",
    address: Address = "auto",
) -> None:
    """Send a message to an actor, which is made if there is none, and print its reply."""
    with _joined(address) as joined:
        data = sys.stdin.buffer.read() if message is None else message
        write = writer(sys.stdout)
        for piece in joined.send(actor_id, data, sender=sender, key=key, type=kind):
            write(piece)


@cluster.command()
def migrate(
    actor_id: Actor,
    node: Annotated[str, typer.Argument(metavar="NODE", help="The beginning of its id, or its name.")],
    address: Address = "auto",
) -> None:
    """Move an actor to another node, and print the node's id."""
    with _joined(address) as joined:
        print(joined.migrate(actor_id, node))


@cluster.command()
def down(address: Address = "auto") -> None:
    """Freeze all actors, and end what runs them. Ray goes on."""
    with _joined(address) as joined:
        refused = joined.down()
    if refused:
        raise ClusterError(f"{len(refused)} nodes could not freeze all actors: {refused[0]}")
    print("down: all actors are in the store")


def _joined(address: str) -> Cluster:
    from wasmetal.cluster import Cluster

    return Cluster(address)
