"""Which node has which actor: the decision alone, without Ray."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from wasmetal.errors import ClusterError, GuestError, printable


@dataclass(frozen=True, slots=True)
class Place:
    """A node that runs actors."""

    node: str
    """Ray's id of the node."""
    name: str
    """Its host name or address."""
    types: frozenset[str]
    """Types of actors whose programs and models it has."""
    resident: int
    """Actors that may be awake there."""


class Placement:
    """Actors by node. An actor stays where it is until it is moved or its node leaves. It takes no lock."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._node_of: dict[str, str] = {}
        self._count: Counter[str] = Counter()

    def join(self, place: Place) -> None:
        """A node runs actors from now on."""
        self.places[place.node] = place

    def leave(self, node: str) -> list[str]:
        """A node is gone; the actors that were there."""
        self.places.pop(node, None)
        orphans = [actor_id for actor_id, where in self._node_of.items() if where == node]
        for actor_id in orphans:
            del self._node_of[actor_id]
        del self._count[node]
        return orphans

    def find(self, actor_id: str) -> str | None:
        """The node that has an actor; None if none has it yet."""
        return self._node_of.get(actor_id)

    def on(self, node: str) -> list[str]:
        """The actors of a node, sorted."""
        return sorted(actor_id for actor_id, where in self._node_of.items() if where == node)

    def choose(self, kind: str | None) -> str:
        """The node for an actor of a type: of those that have the type, the one with the fewest actors for its places.

        ``kind``: None if any type may be meant. Raises ClusterError if there are no nodes, GuestError if none has the
        type.
        """
        if not self.places:
            raise ClusterError("no node runs actors now")
        fitting = [place for place in self.places.values() if kind is None or kind in place.types]
        if not fitting:
            known = sorted({each for place in self.places.values() for each in place.types})
            raise GuestError(
                f"no node has actors of the type {printable(repr(kind))}; the {len(self.places)} nodes have "
                f"{', '.join(known)}"
            )
        return min(fitting, key=lambda place: (self._count[place.node] / place.resident, place.node)).node

    def put(self, actor_id: str, node: str) -> None:
        """An actor is at a node from now on."""
        self.remove(actor_id)
        self._node_of[actor_id] = node
        self._count[node] += 1

    def remove(self, actor_id: str) -> None:
        """No node has an actor any more."""
        if (before := self._node_of.pop(actor_id, None)) is not None:
            self._count[before] -= 1

    def count(self, node: str) -> int:
        """How many actors a node has."""
        return self._count[node]
