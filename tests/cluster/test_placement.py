"""Where actors are put: each at one node, spread by what nodes have room for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wasmetal.cluster.placement import Place, Placement
from wasmetal.errors import ClusterError, GuestError

NODES = st.sampled_from("nopq")
ACTORS = st.sampled_from("abcdefgh")


def place(node: str, *types: str, resident: int = 1) -> Place:
    return Place(node, f"host of {node}", frozenset(types), resident)


class Machine(RuleBasedStateMachine):
    """Against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.placement, self.where, self.there = Placement(), dict[str, str](), set[str]()

    @rule(node=NODES)
    def join(self, node: str) -> None:
        self.placement.join(place(node, "t"))
        self.there.add(node)

    @rule(node=NODES)
    def leave(self, node: str) -> None:
        orphans = {actor for actor, at in self.where.items() if at == node}
        assert set(self.placement.leave(node)) == orphans
        self.there.discard(node)
        for actor in orphans:
            del self.where[actor]

    @rule(actor=ACTORS)
    def put(self, actor: str) -> None:
        if not self.there:
            with pytest.raises(ClusterError):
                self.placement.choose("t")
            return
        node = self.placement.choose("t")
        counts = {each: list(self.where.values()).count(each) for each in self.there}
        assert counts[node] == min(counts.values())
        self.placement.put(actor, node)
        self.where[actor] = node

    @rule(actor=ACTORS)
    def remove(self, actor: str) -> None:
        self.placement.remove(actor)
        self.where.pop(actor, None)

    @invariant()
    def agrees(self) -> None:
        for actor in "abcdefgh":
            assert self.placement.find(actor) == self.where.get(actor)
        for node in "nopq":
            assert self.placement.on(node) == sorted(actor for actor, at in self.where.items() if at == node)
            assert self.placement.count(node) == len(self.placement.on(node))


TestPlacement = Machine.TestCase


@given(st.integers(1, 20), st.integers(1, 20))
def test_as_many_as_there_is_room_for(small: int, large: int) -> None:
    placement = Placement()
    placement.join(place("n", "t", resident=small))
    placement.join(place("o", "t", resident=large))
    for number in range(small + large):
        placement.put(str(number), placement.choose(None))
    assert (placement.count("n"), placement.count("o")) == (small, large)


def test_a_node_has_the_type() -> None:
    placement = Placement()
    placement.join(place("n", "chat"))
    placement.join(place("o", "chat", "draw"))
    assert placement.choose("draw") == "o"
    with pytest.raises(GuestError, match="no node has actors of the type 'sing'; the 2 nodes have chat, draw"):
        placement.choose("sing")
