"""Leases: who has an actor awake. While one is held, nobody else thaws, saves or deletes the actor."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Self

from wasmetal.actor.store.manifest_json import Chunks
from wasmetal.closing import Closing
from wasmetal.errors import SnapshotError, printable


class ActorHeldError(SnapshotError):
    """Somebody else has the actor awake."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, by its own account."""

    pid: int
    host: str
    since: float
    """Seconds since 1970."""

    @classmethod
    def here(cls) -> Self:
        """This process, now."""
        return cls(os.getpid(), socket.gethostname(), time.time())

    def to_json(self) -> bytes:
        """For :meth:`from_json`."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self | None:
        """The holder; None if it cannot be read."""
        try:
            fields = json.loads(data[:4096])
            return cls(int(fields["pid"]), printable(str(fields["host"])), float(fields["since"]))
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease(Closing, ABC):
    """The right to thaw, save and delete one actor, until it is closed or its process ends."""

    def __init__(self, actor_id: str) -> None:
        self.actor_id = actor_id
        self.named: Chunks = {}
        """What the actor's snapshot names, as far as the holder has saved or loaded it: nobody else can change that."""
        self._saving = threading.Lock()

    def begin_save(self) -> None:
        """Begin a save, which relies on ``named``, or a deletion. Raises SnapshotError while a save is in progress."""
        if not self._saving.acquire(blocking=False):
            raise SnapshotError(f"actor {self.actor_id} is being saved with this lease already: close that save first")

    def end_save(self) -> None:
        """Let the next save begin."""
        self._saving.release()

    @abstractmethod
    def check(self) -> None:
        """Raise ActorHeldError if the lease was closed or lost."""


def held(actor_id: str, holder: Holder | None) -> ActorHeldError:
    """The error for an actor that somebody else has awake."""
    who = holder or "another process"
    return ActorHeldError(f"actor {actor_id} is awake in {who}: freeze it there, or wait until that has ended")
