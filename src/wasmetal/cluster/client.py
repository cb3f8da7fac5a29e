"""Using a cluster: starting it, sending messages to its actors, moving them, ending it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from wasmetal.actor.store import checked_id
from wasmetal.closing import Closing
from wasmetal.cluster.connection import Connection
from wasmetal.cluster.directory import DIRECTORY, NAMESPACE, THREADS, Directory
from wasmetal.cluster.ending import Ending
from wasmetal.cluster.ray_errors import line
from wasmetal.cluster.settings import ClusterSettings
from wasmetal.errors import ClusterError, WasmetalError

T = TypeVar("T")

PATIENCE = 90.0
"""Seconds in which a message that a node could not handle, because it died, is sent to others."""
_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class _Request:
    """A message, as a node takes it."""

    actor_id: str
    message: bytes
    sender: str
    key: str
    kind: str | None
    create: bool


class Cluster(Closing):
    """A cluster of Ray's nodes that run actors. Use it as a context manager, or call :meth:`close`.

    ::

        settings = ClusterSettings.read("cluster.toml")
        with Cluster.up(settings) as cluster:
            print(cluster.send("ann", "Why is the sky blue?").read().decode())

    An actor is on one node, which its first message or timer decides, and stays there until it is migrated or the node
    dies. Then it goes on elsewhere from its last snapshot. Closing leaves the cluster; :meth:`down` ends it.
    """

    def __init__(self, address: str = "auto") -> None:
        """Join a cluster that is up. ``address``: Ray's. Raises ClusterError if there is none."""
        with ExitStack() as stack:
            self._connection = stack.enter_context(Connection(address))
            try:
                self._directory = ray.get_actor(DIRECTORY, namespace=NAMESPACE)
            except ValueError:
                raise ClusterError(
                    "no actors run on this Ray cluster: start them with `wasmetal cluster up SETTINGS`"
                ) from None
            stack.pop_all()

    @classmethod
    def up(cls, settings: ClusterSettings, address: str = "auto", *, seconds: float = 600.0) -> Self:
        """Have a Ray cluster run actors, and wait until a node does.

        Each node, also one that comes later, gets a host with the types whose ``resources`` it has. A cluster that is
        up already goes on with the settings that it was started with.

        Raises ClusterError if Ray cannot be reached, the store cannot be used, or no node can run any of the types
        within ``seconds``.
        """
        with Connection(address):
            directory = (
                ray.remote(Directory)
                .options(
                    name=DIRECTORY,
                    namespace=NAMESPACE,
                    lifetime="detached",
                    get_if_exists=True,
                    max_restarts=-1,
                    max_concurrency=THREADS,
                    num_cpus=0,
                )
                .remote(settings)
            )
            until = time.monotonic() + seconds
            while not (status := _call(directory.status.remote))["nodes"]:
                if time.monotonic() > until or (status["failed"] and not status["starting"]):
                    ray.kill(directory)
                    reason = "; ".join(f"node {each['node'][:8]}: {each['error']}" for each in status["failed"])
                    raise ClusterError(f"no node can run actors: {reason or 'none has the resources of any type'}")
                time.sleep(_PAUSE)
            return cls(address)

    def send(
        self,
        actor_id: str,
        message: bytes | str,
        *,
        sender: str = "",
        key: str | None = None,
        type: str | None = None,
        create: bool = True,
    ) -> ClusterReply:
        """Send a message. It is handled once, whatever dies meanwhile, and acknowledged by the end of its reply.

        ``key``: as for :meth:`ActorHost.send`; by default a random one, so that a message which a dead node may have
        handled can be sent again. ``sender``, ``type``, ``create``: as there.

        Raises SnapshotError for what cannot be an actor's id, GuestError if no node has the type. The reply raises what
        goes wrong later.
        """
        data = message.encode() if isinstance(message, str) else bytes(message)
        chosen = secrets.token_hex(16) if key is None else key
        return ClusterReply(self, _Request(checked_id(actor_id), data, sender, chosen, type, create))

    def migrate(self, actor_id: str, node: str) -> str:
        """Move an actor to a node, by the beginning of its id or by its name; return the node's id.

        The actor handles what was sent before; what is sent meanwhile waits. Raises GuestError if there is no such
        node, and SnapshotError if the actor cannot be frozen.
        """
        return str(_call(self._directory.migrate.remote, checked_id(actor_id), node))

    def status(self, actors: bool = False) -> dict[str, Any]:
        """The nodes and what their hosts do, as values of JSON. ``actors``: and the ids of the actors of each."""
        found: dict[str, Any] = _call(self._directory.status.remote, actors)
        return found

    def down(self) -> list[str]:
        """Freeze all actors, and end the hosts and the directory, but not Ray; what could not be frozen."""
        errors: list[str] = _call(self._directory.close.remote)
        ray.kill(self._directory)
        return errors

    def close(self) -> None:
        """Leave the cluster. A connection to Ray that the program had before stays. Idempotent."""
        self._connection.close()

    def _begin(self, request: _Request, refused: str) -> tuple[str, Iterator[Any]]:
        """Send a message to the node that has its actor: the node, and the stream of the reply."""
        node, handle = _call(self._directory.where.remote, request.actor_id, request.kind, refused)
        stream = handle.send.remote(
            request.actor_id, request.message, request.sender, request.key, request.kind, request.create
        )
        return node, stream


class ClusterReply:
    """The reply to a message, as it is made. One thread may read it."""

    def __init__(self, cluster: Cluster, request: _Request) -> None:
        self._cluster, self._request = cluster, request
        self._pieces: list[bytes] = []
        self._ended: Ending | None = None
        self._begun: tuple[str, Iterator[Any]] | None = None
        with suppress(ClusterError):  # it is tried again when the reply is read
            self._begun = cluster._begin(request, "")

    def __iter__(self) -> Iterator[bytes]:
        """The pieces as they come. At the end raises what :meth:`read` does."""
        yield from self._pieces
        if self._ended is None:
            for piece in self._rest():
                self._pieces.append(piece)
                yield piece
        assert self._ended is not None
        self._ended.check()

    def read(self) -> bytes:
        """The whole reply, once what the message has changed is in the store.

        Raises ClusterError if no node could handle it, and why it failed: what :meth:`ActorHost.send` and its reply
        raise.
        """
        return b"".join(self)

    def _rest(self) -> Iterator[bytes]:
        """The pieces that were not given yet; at the end ``_ended`` is set."""
        until: float | None = None
        refused = ""
        while self._ended is None:
            try:
                refused, stream = self._begun or self._cluster._begin(self._request, refused)
                self._begun = None
                yield from self._attempt(stream)
            except (RayError, ClusterError) as error:
                now = time.monotonic()
                until = until or now + PATIENCE
                if now > until:
                    raise ClusterError(
                        f"actor {self._request.actor_id} has not answered for {PATIENCE:g} seconds: {line(error)}; "
                        "send the message again with its key"
                    ) from error
                time.sleep(_PAUSE)

    def _attempt(self, stream: Iterator[Any]) -> Iterator[bytes]:
        """New pieces of a stream. What was given before, by a node that has died, is left out."""
        given, seen = b"".join(self._pieces), 0
        for ref in stream:
            item = ray.get(ref)
            if isinstance(item, Ending):
                if not item.elsewhere:
                    self._ended = item
                return
            known = given[seen : seen + len(item)]
            if not item.startswith(known):
                self._ended = Ending(
                    "ClusterError", "the node died, and the reply is another one now: send it again with its key"
                )
                return
            seen += len(item)
            if new := item[len(known) :]:
                yield new


def _call(function: Callable[..., Any], *args: Any) -> Any:
    """Call the directory. Raises what it does, and ClusterError if it does not answer.

    What it is asked can be asked twice, so a directory that is being restarted is asked again.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ray.get(function(*args))
        except RayTaskError as error:
            if isinstance(error.cause, WasmetalError):
                raise error.cause from None
            raise
        except RayError as error:
            if not isinstance(error, ActorUnavailableError) or time.monotonic() > until:
                raise ClusterError(f"the cluster's directory does not answer: {line(error)}") from error
        time.sleep(_PAUSE)
