"""One node's part of a cluster: a host with the actors that the directory has put there. Ray makes it an actor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from threading import Lock
from typing import Any, Final

import ray

from wasmetal.actor.hosting import ActorHost, ActorType
from wasmetal.actor.store import ActorHeldError
from wasmetal.cluster.ending import Ending
from wasmetal.cluster.objects import store_of
from wasmetal.cluster.settings import ClusterSettings
from wasmetal.errors import WasmetalError
from wasmetal.host.limits import Limits

GROUPS: Final = {"messages": 64, "control": 4}
"""Threads: messages may wait for their turn, and the directory's calls must not wait for them."""
_PATIENCE = 60.0
"""Seconds in which another process that had an actor must give up its lease: one that dies, or was cut off."""
_PAUSE = 0.05


class Node:
    """The host of one node. It takes messages for the actors that it owns, and for no others."""

    def __init__(self, settings: ClusterSettings, kinds: Sequence[str]) -> None:
        """``kinds``: the types of actors that run here. Raises what :class:`ActorHost` does."""
        types = {
            name: ActorType(
                program=each.program,
                models=each.models,
                args=each.args,
                env=each.env,
                dirs=each.dirs,
                limits=Limits(wall_seconds=each.wall_seconds),
            )
            for name, each in settings.types.items()
            if name in kinds
        }
        self._host = ActorHost(store_of(settings), types, timers=False, **settings.host)
        self._lock = Lock()
        """Between a message and the loss of its actor."""
        self._owned: set[str] = set()

    @ray.method(concurrency_group="messages", num_returns="streaming")  # type: ignore[untyped-decorator]
    def send(
        self, actor_id: str, message: bytes, sender: str, key: str, kind: str | None, create: bool
    ) -> Iterator[bytes | Ending]:
        """Have an actor handle a message: the pieces of the reply, and the ending."""
        until = time.monotonic() + _PATIENCE
        while True:
            given = False
            try:
                with self._lock:
                    if actor_id not in self._owned:
                        yield Ending(elsewhere=True)
                        return
                    reply = self._host.send(actor_id, message, sender=sender, key=key, type=kind, create=create)
                for piece in reply:
                    given = True
                    yield piece
                yield Ending()
                return
            except WasmetalError as error:
                if not isinstance(error, ActorHeldError) or given or time.monotonic() > until:
                    yield Ending.of(error)
                    return
            time.sleep(_PAUSE)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def own(self, actor_ids: Sequence[str]) -> None:
        """Take messages for these actors, and wake them when their timers are due."""
        with self._lock:
            self._owned.update(actor_ids)
        for actor_id in actor_ids:
            try:
                self._host.watch(actor_id)
            except WasmetalError:  # a message will tell why
                continue

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def disown(self, actor_id: str) -> Ending:
        """Take no more messages for an actor, and freeze it once it has handled those that were taken."""
        with self._lock:
            self._owned.discard(actor_id)
        try:
            self._host.freeze(actor_id)
        except WasmetalError as error:
            with self._lock:
                self._owned.add(actor_id)
            return Ending.of(error)
        self._host.unwatch(actor_id)
        return Ending()

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def owned(self) -> list[str]:
        """The actors that it takes messages for."""
        with self._lock:
            return sorted(self._owned)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def ping(self) -> None:
        """Answer."""

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stats(self) -> dict[str, Any]:
        """What the host does: the fields of :class:`HostStats`."""
        return asdict(self._host.stats())

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def close(self) -> str:
        """Freeze all actors, and take no more messages; what went wrong, or nothing."""
        with self._lock:
            self._owned.clear()
        try:
            self._host.close()
        except WasmetalError as error:
            return str(error)
        return ""
