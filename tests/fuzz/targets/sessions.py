"""Sessions of two guests that share a model: forward, fork, truncate, save, restore and close, in any order.

An input is a JSON array of operations. Now and then a session's keys and values are compared with those of a new
session that was given the same tokens, so a page that went to two sessions, or was not copied in time, shows. A saved
state that was changed is refused, or, if its checksum was repaired, changes no session but the one that takes it.
"""

from __future__ import annotations

import json
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fuzz.target import Run
from tests.host.probe import PAGE, Probe
from tests.models.tiny import write_tiny_llama
from wasmetal import Limits, load_model, open_device
from wasmetal.device import Device
from wasmetal.host.abi import Errno
from wasmetal.models import Model

SECONDS = 60.0
MEMORY = 1 << 30

SMALL = {"qtype": "F32", "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 16, "context": 256}
HEADER = 64
"""Bytes of a saved state before its keys and values; the last four are their checksum."""
STATE, ROOM, TOKENS = 4 * PAGE, 24 * PAGE, 2048
SAVED = 6
"""How many saved states are kept."""


def generate(random: Random) -> bytes:
    return json.dumps([_operation(random) for _ in range(60)]).encode()


def _operation(random: Random) -> list[Any]:
    """The guest, the session among those that it has, the operation and its argument."""
    r, which = random.random(), [random.randrange(2), random.randrange(10)]
    if r < 0.12:
        return [*which, "open", 0]
    if r < 0.45:
        count = random.choice([1, 1, 2, 5, 31, 32, 33, 60])
        return [*which, "forward", [random.randrange(200) for _ in range(count)]]
    if r < 0.58:
        return [*which, "fork", 0]
    if r < 0.7:
        return [*which, "truncate", random.random()]
    if r < 0.77:
        return [*which, "save", 0]
    if r < 0.84:
        return [*which, "restore", random.randrange(SAVED)]
    if r < 0.88:
        return [
            *which,
            "damage",
            [random.randrange(SAVED), random.random() ** 3, random.randrange(8), random.random() < 0.5],
        ]
    return [*which, random.choice(["close", "compare", "compare"]), 0]


@contextmanager
def opened(device: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_llama(Path(folder, "tiny.gguf"), **SMALL)
        with (
            open_device(device) as opened_device,
            load_model(path, opened_device, kv_type="f32") as model,
            load_model(path, opened_device, kv_type="f32") as reference,
        ):
            yield lambda data: _run(json.loads(data), opened_device, model, reference)


def _run(operations: list[Any], device: Device, model: Model, reference: Model) -> Counter[str]:
    free = model.cache.free
    grants: dict[str, Any] = {"models": {"m": model}, "limits": Limits(handles=24)}
    with (
        Probe(device, pages=32, maximum=32, **grants) as first,
        Probe(device, pages=32, maximum=32, **grants) as second,
    ):
        guests, saved = [Guest(first, reference), Guest(second, reference)], Saved()
        outcomes = Counter(guests[who].act(which, name, argument, saved) for who, which, name, argument in operations)
        for guest in guests:
            for session in list(guest.tokens):
                outcomes[guest.compare(session)] += 1
    assert model.cache.free == free, "pages of the KV cache were lost"
    return outcomes


class Saved(list[tuple[list[int], bytes]]):
    """The last saved states, each with its tokens."""

    def keep(self, tokens: list[int], state: bytes) -> None:
        """Add one."""
        self.append((list(tokens), state))
        del self[:-SAVED]


class Guest:
    """A guest, and the tokens that each of its sessions should hold. ``reference``: the same model, loaded again."""

    def __init__(self, probe: Probe, reference: Model) -> None:
        self.probe, self.reference = probe, reference
        self.tokens: dict[int, list[int]] = {}
        probe.put(128, b"m")
        assert probe.model_open(128, 1, probe.OUT) == Errno.SUCCESS
        self.handle = probe.u32()

    def act(self, which: int, name: str, argument: Any, saved: Saved) -> str:
        """Do one operation of an input; return what came of it."""
        if name == "open" or not self.tokens:
            if len(self.tokens) < 10 and self.probe.session_open(self.handle, self.probe.OUT) == Errno.SUCCESS:
                self.tokens[self.probe.u32()] = []
            return "open"
        session = list(self.tokens)[which % len(self.tokens)]
        if name in ("restore", "damage") and not saved:
            return "nothing to restore"
        if name == "save":
            saved.keep(self.tokens[session], self.state(session))
            return name
        if name in ("restore", "damage"):
            return getattr(self, name)(session, saved, argument)
        return getattr(self, name)(session, argument) if name != "compare" else self.compare(session)

    def forward(self, session: int, tokens: list[int]) -> str:
        held, probe = self.tokens[session], self.probe
        if len(held) + len(tokens) > self.reference.context_length:
            return "full"
        probe.put(TOKENS, np.array(tokens, np.uint32))
        return self._noted(probe.session_forward(session, TOKENS, len(tokens), 0), session, held + tokens, "forward")

    def fork(self, session: int, _: object) -> str:
        errno = self.probe.session_fork(session, self.probe.OUT)
        fork = self.probe.u32() if errno == Errno.SUCCESS else 0
        return self._noted(errno, fork, self.tokens[session], "fork")

    def truncate(self, session: int, share: float) -> str:
        kept = self.tokens[session][: int(share * (len(self.tokens[session]) + 1))]
        return self._noted(self.probe.session_truncate(session, len(kept)), session, kept, "truncate")

    def close(self, session: int, _: object) -> str:
        del self.tokens[session]
        assert self.probe.session_close(session) == Errno.SUCCESS
        return "close"

    def restore(self, session: int, saved: Saved, index: int) -> str:
        tokens, state = saved[index % len(saved)]
        errno = self.probe.session_restore(session, STATE, self.probe.put(STATE, state))
        return self._noted(errno, session, tokens, "restore")

    def damage(self, session: int, saved: Saved, argument: tuple[int, float, int, bool]) -> str:
        """Restore a state that differs in one bit, its checksum repaired or not."""
        index, place, bit, repaired = argument
        tokens, state = saved[index % len(saved)]
        changed = bytearray(state)
        changed[int(place * len(state))] ^= 1 << bit
        if repaired:
            struct.pack_into("<I", changed, HEADER - 4, zlib.crc32(changed[HEADER:], zlib.crc32(changed[: HEADER - 4])))
        errno = self.probe.session_restore(session, STATE, self.probe.put(STATE, bytes(changed)))
        if changed == state or errno != Errno.SUCCESS:
            return self._noted(errno, session, tokens, "damage", refused=Errno.INVAL)
        assert repaired, "a damaged state was taken"
        return self.close(session, 0)  # its keys and values are nobody's

    def compare(self, session: int) -> str:
        """The session's state against one of the same tokens made anew."""
        tokens = self.tokens[session]
        if not tokens:
            return "empty"
        with self.reference.session() as fresh:
            fresh.forward(tokens, None)
            expected = _values(fresh.save())
        assert np.allclose(_values(self.state(session)), expected, atol=2e-2, rtol=1e-2), (
            "another session's keys or values"
        )
        return "compared"

    def state(self, session: int) -> bytes:
        """The session's saved state."""
        assert self.probe.session_save(session, STATE, ROOM, 64) == Errno.SUCCESS
        return self.probe.bytes[STATE : STATE + self.probe.u32()].tobytes()

    def _noted(self, errno: Errno, session: int, tokens: list[int], name: str, refused: Errno = Errno.NOMEM) -> str:
        """Note that the session now holds these tokens, if the call succeeded; otherwise it may only be ``refused``."""
        if errno == Errno.SUCCESS:
            self.tokens[session] = list(tokens)
            return name
        assert errno in (refused, Errno.NOMEM, Errno.MFILE), errno
        return f"{name}: {errno.name}"


def _values(state: bytes) -> NDArray[np.float32]:
    return np.frombuffer(state, np.float32, offset=HEADER)
