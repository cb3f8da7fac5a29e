"""A guest that attacks, its neighbour, and what must not change, whatever the attacker calls."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections import Counter, defaultdict
from random import Random
from typing import Any

import numpy as np

from tests.fuzz import commands
from tests.fuzz.noise import PAGE
from tests.host.probe import Probe
from wasmetal.host import abi
from wasmetal.host.abi import Errno

POISON = 0xA5
SIZE = 8 * PAGE
UNSHARED = 5 * PAGE
"""From here on the guest shares nothing, and what a call is not told to write there stays."""
STATE, STATE_ROOM = 2 * PAGE, 2 * PAGE
COMMANDS = 4096

FUNCTIONS = {function.name: function for interface in abi.DESCRIPTION for function in interface.functions}
MAKES = {
    "buffer_create": "shared",
    "buffer_create_device": "device",
    "commands_submit": "submission",
    "session_open": "session",
    "session_fork": "session",
}
"""What kind of handle a function gives, at its last parameter."""
RELEASES = ("submission_wait", "buffer_destroy", "session_close")


class Scene:
    """The attacker, its neighbour, and what must not change."""

    def __init__(self, attacker: Probe, neighbour: Probe) -> None:
        self.attacker, self.neighbour = attacker, neighbour
        self.outcomes: Counter[str] = Counter()
        self.live: dict[str, list[int]] = defaultdict(list)
        self._state_bytes = 0
        theirs: dict[str, list[int]] = defaultdict(list)
        for probe, handles in ((attacker, self.live), (neighbour, theirs)):
            _equip(probe, handles)
        self.kept = list(itertools.chain(*self.live.values()))
        self.live["stolen"] = list(itertools.chain(*theirs.values()))
        self.live["stale"] = [0, 1, 0xFFFFFFFF]
        self._theirs = theirs
        neighbour.bytes[:] = POISON
        assert neighbour.buffer_write(theirs["device"][0], 0, PAGE, 8192) == Errno.SUCCESS
        attacker.bytes[UNSHARED:] = POISON

    def act(self, action: str, argument: Any) -> None:
        """One step of an input."""
        memory = self.attacker
        if action == "write":
            address, data = argument
            memory.put(address, bytes.fromhex(data))
        elif action == "noise":
            random = Random(argument)
            words = [random.getrandbits(32) if random.random() < 0.5 else random.randint(0, 8) for _ in range(64)]
            memory.put(PAGE, np.array(words, np.uint32))
        elif action == "commands":
            memory.put(COMMANDS, b"".join(commands.record(each, self.handle).tobytes() for each in argument))
        elif action == "state":
            self._forge(*argument)
        else:
            self._call(action, argument)

    def handle(self, reference: Any) -> int:
        """The number that a reference in an input stands for."""
        kind, n = reference
        if kind == "number":
            return int(n)
        if kind == "state":
            return self._state_bytes
        held = self.live[kind]
        return held[n % len(held)] if held else 0

    def check_neighbour(self) -> None:
        """Fails if the neighbour's memory, device buffer or session has changed."""
        probe = self.neighbour
        assert (probe.bytes == POISON).all(), "the neighbour's memory has changed"
        probe.bytes[:] = 0
        assert probe.buffer_read(self._theirs["device"][0], 0, PAGE, 8192) == Errno.SUCCESS
        assert (probe.bytes[PAGE : PAGE + 8192] == POISON).all(), "the neighbour's device buffer has changed"
        assert probe.session_length(self._theirs["session"][0], 64) == Errno.SUCCESS
        assert probe.u32() == 0, "the neighbour's session has changed"

    def _call(self, name: str, references: list[Any]) -> None:
        function, memory64 = FUNCTIONS[name], self.attacker.memory64
        values = [self.handle(each) if isinstance(each, list) else each for each in references]
        values = [v & ((1 << abi.width(kind, memory64)) - 1) for v, kind in zip(values, function.kinds, strict=True)]
        if name in RELEASES and values[0] in self.kept:
            return
        errno = getattr(self.attacker, name)(*values)
        self.outcomes[f"calls of {name}"] += 1
        self.outcomes[errno.name] += 1
        self.outcomes["lists started"] += errno == Errno.SUCCESS and name == "commands_submit"
        assert errno is Errno.SUCCESS or errno in function.all_errors, f"{name} gave {errno.name}, not documented"
        if errno == Errno.SUCCESS:
            self._keep_account(name, values)
        self._check_poison(name, values)

    def _keep_account(self, name: str, values: list[int]) -> None:
        if name in MAKES:
            made = self.attacker.u32(values[-1])
            if name == "buffer_create" and values[0] + values[1] > UNSHARED:
                assert self.attacker.buffer_destroy(made) == Errno.SUCCESS
            else:
                self.live[MAKES[name]].append(made)
        if name in RELEASES:
            for held in self.live.values():
                if values[0] in held:
                    held.remove(values[0])
            self.live["stale"].append(values[0])

    def _check_poison(self, name: str, values: list[int]) -> None:
        assert (self.neighbour.bytes == POISON).all(), f"{name}{tuple(values)} wrote to a neighbour's memory"
        tail = self.attacker.bytes[UNSHARED:SIZE]
        if (tail == POISON).all():
            return
        # Where the guest tells a call to write, that call may write: up to 4 bytes for each item that it asks for.
        told = [v for v, kind in zip(values, FUNCTIONS[name].kinds, strict=True) if kind == abi.PTR]
        reach = max(2 * PAGE, *(4 * v for v in values if v < SIZE))
        assert any(v + reach > UNSHARED and v < SIZE for v in told), f"{name}{tuple(values)} wrote to pages not shared"
        tail[:] = POISON

    def _forge(self, session: Any, flips: list[float], repaired: bool) -> None:
        """A saved state in memory, damaged, or with other keys and values and the right checksum."""
        self._state_bytes = 64
        if self.attacker.session_save(self.handle(session), STATE, STATE_ROOM, 1024) != Errno.SUCCESS:
            return
        self._state_bytes = size = self.attacker.u32(1024)
        state = self.attacker.bytes[STATE : STATE + size]
        for place in flips:
            state[int(place * size)] ^= 1 << int(place * 997) % 8
        if repaired:
            state[60:] = 0xFF
            struct.pack_into("<I", state, 56, zlib.crc32(state[60:].tobytes(), zlib.crc32(state[:56].tobytes())))


def _equip(probe: Probe, handles: dict[str, list[int]]) -> None:
    """A live handle of each kind."""
    probe.put(128, b"m")
    handles["shared"].append(probe.share(PAGE, PAGE))
    handles["device"].append(probe.allocate(8192))
    assert probe.model_open(128, 1, probe.OUT) == Errno.SUCCESS
    handles["model"].append(probe.u32())
    assert probe.session_open(handles["model"][0], probe.OUT) == Errno.SUCCESS
    handles["session"].append(probe.u32())
