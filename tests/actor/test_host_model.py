"""A host against a model: counters in a dictionary, whatever is sent, frozen, forked, deleted, trapped and crashed."""

from __future__ import annotations

import shutil
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.actor.hosts import count, crash, host_on
from wasmetal.actor.hosting.timers import Timers
from wasmetal.errors import GuestTrapError, SnapshotError

NAMES = st.sampled_from("abcdef")
KEYS = 3


class Counter:
    """What an actor is to the model."""

    def __init__(self) -> None:
        self.count = 0
        self.answers: dict[str, int] = {}

    def handle(self, key: str | None) -> int:
        if key in self.answers:
            return self.answers[key]
        self.count += 1
        if key is not None:
            self.answers[key] = self.count
            if len(self.answers) > KEYS:
                del self.answers[next(iter(self.answers))]
        return self.count


class Hosts(RuleBasedStateMachine):
    """The host, the actors as they are, and as they were when they were saved."""

    @initialize(durability=st.sampled_from(["message", "freeze"]), resident=st.integers(1, 4))
    def begin(self, durability: str, resident: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        self.options = {"durability": durability, "resident": resident, "keys": KEYS, "idle_seconds": None}
        self.live: dict[str, Counter] = {}
        self.saved: dict[str, Counter] = {}
        self.host = host_on(self.folder, **self.options)

    @rule(name=NAMES, key=st.none() | st.sampled_from("123456"))
    def send(self, name: str, key: str | None) -> None:
        expected = self.live.setdefault(name, Counter()).handle(key)
        assert count(self.host, name, key=key) == expected
        self._saved_what_left(name if self.options["durability"] == "message" else None)

    @rule(name=NAMES)
    def trap(self, name: str) -> None:
        with pytest.raises(GuestTrapError):
            self.host.send(name, b"t").read()
        self._saved_what_left(but=name)
        self._undo(name)

    @rule(name=NAMES)
    def freeze(self, name: str) -> None:
        self.host.freeze(name)
        self._saved_what_left()

    @rule(name=NAMES, new=NAMES)
    def fork(self, name: str, new: str) -> None:
        if name not in self.live or new in self.live:
            with pytest.raises(SnapshotError):
                self.host.fork(name, new)
        else:
            self.host.fork(name, new)
            self.live[new] = Counter()
            self.live[new].count = self.live[name].count
            self.saved[new] = deepcopy(self.live[new])
        self._saved_what_left()

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.live:
            self.host.delete(name)
            del self.live[name]
            self.saved.pop(name, None)
        else:
            with pytest.raises(SnapshotError, match="no snapshot"):
                self.host.delete(name)

    @rule()
    def restart(self) -> None:
        self.host.close()
        self.saved = deepcopy(self.live)
        self.host = host_on(self.folder, **self.options)

    @precondition(lambda self: self.live)
    @rule()
    def crash(self) -> None:
        crash(self.host)
        self.live = deepcopy(self.saved)
        self.host = host_on(self.folder, **self.options)

    @invariant()
    def the_same_actors(self) -> None:
        if hasattr(self, "host"):
            assert self.host.actors() == sorted(self.live)
            assert len(self.host.resident()) <= int(str(self.options["resident"]))

    def teardown(self) -> None:
        if hasattr(self, "host"):
            self.host.close()
            shutil.rmtree(self.folder)

    def _saved_what_left(self, also: str | None = None, but: str | None = None) -> None:
        resident = self.host.resident()
        for name, counter in self.live.items():
            if name != but and (name == also or name not in resident):
                self.saved[name] = deepcopy(counter)

    def _undo(self, name: str) -> None:
        if name in self.saved:
            self.live[name] = deepcopy(self.saved[name])
        else:
            self.live.pop(name, None)


TestHosts = Hosts.TestCase
TestHosts.settings = settings(max_examples=8, stateful_step_count=25)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestManyHosts(Hosts.TestCase):
    settings = settings(max_examples=100, stateful_step_count=60)


class Alarms(RuleBasedStateMachine):
    """The index of timers against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.timers, self.due, self.set_here, self.learning = Timers(), dict[str, float](), set[str](), True

    @rule(name=NAMES, due=st.none() | st.integers(0, 20))
    def set(self, name: str, due: int | None) -> None:
        self.timers.set(name, due)
        self.set_here.add(name)
        self._expect(name, due)

    @rule(name=NAMES, due=st.integers(0, 20))
    def learn(self, name: str, due: int) -> None:
        if self.learning:
            self.timers.learn(name, due)
            if name not in self.set_here:
                self._expect(name, due)

    @rule()
    def learned(self) -> None:
        self.timers.learned()
        self.learning = False

    @rule(now=st.integers(0, 20))
    def pop(self, now: int) -> None:
        expected = [name for name, due in self.due.items() if due <= now]
        assert sorted(self.timers.pop(now)) == sorted(expected)
        for name in expected:
            del self.due[name]

    @invariant()
    def the_next(self) -> None:
        assert self.timers.next == min(self.due.values(), default=None)
        assert len(self.timers) == len(self.due)
        assert len(self.timers._heap) <= 2 * len(self.due) + 64

    def _expect(self, name: str, due: int | None) -> None:
        self.due.pop(name, None)
        if due is not None:
            self.due[name] = due


TestAlarms = Alarms.TestCase
TestAlarms.settings = settings(max_examples=30, stateful_step_count=150)
