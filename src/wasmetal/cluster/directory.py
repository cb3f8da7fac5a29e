"""The directory of a cluster: it puts actors on nodes, starts hosts on nodes that come, and notices when one dies.

Ray makes it an actor. What it knows can be lost: nodes know what they own, the store has all actors, and the store's
leases see to it that none is awake twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wasmetal.actor.hosting.record import split, timer_of
from wasmetal.cluster.node import GROUPS, Node
from wasmetal.cluster.objects import store_of
from wasmetal.cluster.placement import Place, Placement
from wasmetal.cluster.ray_errors import line
from wasmetal.cluster.settings import ClusterSettings, ClusterType
from wasmetal.errors import ClusterError, GuestError, SnapshotError, WasmetalError, printable

log = logging.getLogger("wasmetal.cluster")

NAMESPACE = "wasmetal"
DIRECTORY = "directory"
THREADS = 64
"""Callers at a time."""
_LOOK = 0.5
"""Seconds between two looks at which nodes there are."""
_START = 600.0
"""Seconds that a node gets to load its models."""
_ANSWER = 120.0
"""Seconds that a node gets for what takes no message's time."""
_AGAIN = 30.0
"""Seconds after which a node whose host could not start is tried again."""
_OWN = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""Ray's own resources, and how it wants to be told of them."""


class Directory:
    """Which node has which actor."""

    def __init__(self, settings: ClusterSettings) -> None:
        """Raises SnapshotError if the store cannot be opened."""
        self._settings = settings
        self._store = store_of(settings)
        self._placement = Placement()
        self._handles: dict[str, Any] = {}
        self._starting: dict[str, Any] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        """Nodes whose host could not start: when, and why."""
        self._moving: set[str] = set()
        """Actors that are on their way to a node."""
        self._changed = Condition()
        """Guards all of that."""
        self._closed = False
        self._unread = iter(self._store.actors())
        """Actors whose timers somebody has to know."""
        Thread(target=self._watch, daemon=True).start()

    # ---- For clients

    def where(self, actor_id: str, kind: str | None, refused: str = "") -> tuple[str, Any]:
        """The node that has an actor, and Ray's handle of it; if none has it, one is chosen.

        ``refused``: a node that did not answer, or said that the actor is not there. Raises ClusterError if no
        node runs actors, GuestError if none has the type.
        """
        if refused:
            self._look_after(refused)
        with self._moved(actor_id):
            node = self._placement.find(actor_id)
            if node is None or node == refused:
                node = self._settle(actor_id, kind)
            with self._changed:
                handle = self._handles.get(node)
        if handle is None:  # it has died meanwhile
            return self.where(actor_id, kind, node)
        return node, handle

    def migrate(self, actor_id: str, to: str) -> str:
        """Move an actor to a node, by the beginning of the node's id or by its name; return the node's id.

        It handles what was sent before; what is sent meanwhile waits. Raises GuestError if there is no such node, and
        why the actor cannot be frozen.
        """
        target = self._named(to)
        with self._moved(actor_id):
            node = self._placement.find(actor_id)
            if node == target:
                return target
            if node is not None:
                ending = self._ask(node, "disown", actor_id, seconds=None)
                ending.check()
            self._ask(target, "own", [actor_id])
            with self._changed:
                self._placement.put(actor_id, target)
        return target

    def status(self, actors: bool = False) -> dict[str, Any]:
        """The nodes, what their hosts do, and which could not start. ``actors``: and the actors of each."""
        with self._changed:
            places, refused = list(self._placement.places.values()), dict(self._refused)
            starting = list(self._starting)
        nodes = []
        for place in places:
            try:
                stats = self._ask(place.node, "stats")
            except ClusterError:
                continue
            with self._changed:
                here = self._placement.on(place.node)
            more = {"actor_ids": here} if actors else {}
            nodes.append(
                {"node": place.node, "name": place.name, "types": sorted(place.types), "actors": len(here)}
                | more
                | {"host": stats}
            )
        failed = [{"node": node, "error": error} for node, (_, error) in refused.items()]
        return {"store": self._settings.store, "nodes": nodes, "starting": starting, "failed": failed}

    def close(self) -> list[str]:
        """Freeze all actors on all nodes, and end their hosts; what went wrong."""
        with self._changed:
            self._closed = True
            handles = dict(self._handles)
            self._handles.clear()
        errors = []
        closing = {node: handle.close.remote() for node, handle in handles.items()}
        for node, answer in closing.items():
            try:
                errors.append(ray.get(answer, timeout=_ANSWER))
            except RayError as error:
                errors.append(f"node {node[:8]}: {line(error)}")
            ray.kill(handles[node])
        return [error for error in errors if error]

    # ---- Nodes

    def _watch(self) -> None:
        while not self._closed:
            try:
                self._look()
                self._read_some()
            except Exception:
                log.exception("the directory cannot keep up")
            time.sleep(_LOOK)

    def _look(self) -> None:
        """Start hosts on new nodes; forget nodes that have died."""
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        with self._changed:
            known = list(self._handles)
            self._refused = {node: why for node, why in self._refused.items() if node in alive}
        for node in known:
            if node not in alive:
                self._leave(node)
            else:
                self._look_after(node)
        for node, found in alive.items():
            if node not in self._handles and node not in self._starting and self._may_start(node):
                kinds = [name for name, each in self._settings.types.items() if _has(found["Resources"], each)]
                if kinds:
                    self._starting[node] = Thread(target=self._start, args=(node, found, kinds), daemon=True)
                    self._starting[node].start()

    def _may_start(self, node: str) -> bool:
        refused = self._refused.get(node)
        return refused is None or time.monotonic() - refused[0] > _AGAIN

    def _start(self, node: str, found: Mapping[str, Any], kinds: Sequence[str]) -> None:
        """Start a host on a node, or find the one that an earlier directory has started."""
        try:
            types = [self._settings.types[kind] for kind in kinds]
            handle = (
                ray.remote(concurrency_groups=GROUPS)(Node)
                .options(
                    name=f"node:{node}",
                    namespace=NAMESPACE,
                    lifetime="detached",
                    get_if_exists=True,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                    **_reserved(types),
                )
                .remote(self._settings, kinds)
            )
            owned = ray.get(handle.owned.remote(), timeout=_START)
        except RayError as error:
            log.warning("node %s cannot run actors: %s", node[:8], line(error))
            with self._changed:
                self._refused[node] = time.monotonic(), line(error)
        else:
            places = int(self._settings.host.get("resident", 32))
            with self._changed:
                self._refused.pop(node, None)
                self._placement.join(Place(node, found["NodeManagerHostname"], frozenset(kinds), places))
                for actor_id in owned:
                    self._placement.put(actor_id, node)
                self._handles[node] = handle
                self._changed.notify_all()
        finally:
            del self._starting[node]

    def _look_after(self, node: str) -> None:
        """Forget a node that does not answer."""
        with self._changed:
            handle = self._handles.get(node)
        if handle is not None:
            try:
                ray.get(handle.ping.remote(), timeout=_ANSWER)
            except RayError as error:
                log.warning("node %s does not answer: %s", node[:8], line(error))
                self._leave(node)

    def _leave(self, node: str) -> None:
        """A node has died: others take its actors, from their last snapshots."""
        with self._changed:
            if self._handles.pop(node, None) is None:
                return
            orphans = self._placement.leave(node)
        for actor_id in orphans:
            with self._moved(actor_id):
                try:
                    if self._placement.find(actor_id) is None and self._placement.places:
                        self._settle(actor_id, None)
                except WasmetalError as error:  # its next message will tell
                    log.warning("actor %s is nowhere: %s", actor_id, error)

    def _read_some(self) -> None:
        """Put actors of the store that have timers on nodes, so that somebody wakes them."""
        if not self._placement.places:
            return
        until = time.monotonic() + _LOOK
        while time.monotonic() < until and (actor_id := next(self._unread, None)) is not None:
            with self._changed:
                if self._placement.find(actor_id) is not None:
                    continue
            try:
                if timer_of(self._store, actor_id) is not None:
                    self.where(actor_id, None)
            except WasmetalError as error:
                log.warning("the timer of actor %s is not known: %s", actor_id, error)

    def _named(self, name: str) -> str:
        with self._changed:
            places = list(self._placement.places.values())
        found = [place.node for place in places if name and (place.node.startswith(name) or place.name == name)]
        if len(found) != 1:
            there = ", ".join(f"{place.node[:8]} ({place.name})" for place in places) or "none"
            raise GuestError(f"{len(found) or 'no'} nodes are called {printable(name)!r}; there are {there}")
        return found[0]

    # ---- Actors

    @contextmanager
    def _moved(self, actor_id: str) -> Iterator[None]:
        """Be the only one who puts this actor anywhere."""
        with self._changed:
            self._changed.wait_for(lambda: actor_id not in self._moving)
            self._moving.add(actor_id)
        try:
            yield
        finally:
            with self._changed:
                self._moving.discard(actor_id)
                self._changed.notify_all()

    def _settle(self, actor_id: str, kind: str | None) -> str:
        """Put an actor on a node that has its type. Raises ClusterError and GuestError if there is none."""
        kind = self._kind(actor_id, kind)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._placement.places or not self._starting, timeout=_START)
                node = self._placement.choose(kind)
            try:
                self._ask(node, "own", [actor_id])
            except ClusterError as error:
                log.warning("%s", error)
                self._look_after(node)
                continue
            with self._changed:
                if node in self._handles:
                    self._placement.put(actor_id, node)
                    return node

    def _kind(self, actor_id: str, kind: str | None) -> str | None:
        """An actor's type: what the sender says, or else its snapshot, if that makes a difference."""
        with self._changed:
            same = len({place.types for place in self._placement.places.values()}) <= 1
        if kind is not None or same:
            return kind
        try:
            with self._store.load(actor_id) as snapshot:
                record = split(snapshot.manifest, 0)[1]
        except SnapshotError:  # a new one: if several types could be meant, the node says so
            return None
        return record.kind if record else None

    def _ask(self, node: str, what: str, *args: Any, seconds: float | None = _ANSWER) -> Any:
        """Call a node. Raises ClusterError if it does not answer."""
        with self._changed:
            handle = self._handles.get(node)
        if handle is None:
            raise ClusterError(f"node {node[:8]} is gone")
        try:
            return ray.get(getattr(handle, what).remote(*args), timeout=seconds)
        except RayError as error:
            raise ClusterError(f"node {node[:8]} does not answer: {line(error)}") from error


def _has(resources: Mapping[str, float], kind: ClusterType) -> bool:
    """Whether a node has what a type needs."""
    return all(resources.get(name, 0.0) >= amount for name, amount in kind.resources.items())


def _reserved(types: Sequence[ClusterType]) -> dict[str, Any]:
    """Ray's options for a host of these types: the most that one of them needs of each resource."""
    most: dict[str, float] = {}
    for each in types:
        for name, amount in each.resources.items():
            most[name] = max(most.get(name, 0.0), amount)
    options: dict[str, Any] = {option: most.pop(name) for name, option in _OWN.items() if name in most}
    return {"num_cpus": 0, **options, "resources": most}
