"""Leases of a store at a URL: objects with a time until which they hold, since nothing there ends with a process."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from dataclasses import asdict

from wasmetal.actor.store.leasing import ActorHeldError, Holder, Lease, held
from wasmetal.actor.store.objects import Objects


class UrlLease(Lease):
    """A lease, held until it is closed or not renewed in time."""

    def __init__(self, actor_id: str, objects: Objects, seconds: float) -> None:
        """Raises ActorHeldError if somebody holds it; OSError."""
        super().__init__(actor_id)
        self._objects, self._seconds = objects, seconds
        self._name, self._token, self._holder = _name(actor_id), secrets.token_hex(16), Holder.here()
        self._open = True
        try:
            objects.create(self._name, self._content())
        except FileExistsError:
            _, until, holder = _read(objects, actor_id)
            if until > time.time():
                raise held(actor_id, holder) from None
            with suppress(FileNotFoundError):  # another takes it over too
                objects.remove(self._name)
            try:
                objects.create(self._name, self._content())
            except FileExistsError:
                raise held(actor_id, _read(objects, actor_id)[2]) from None
        self.check()

    def check(self) -> None:
        """Raise ActorHeldError if the lease was closed, has run out, or is another's by now; OSError."""
        token, until, holder = _read(self._objects, self.actor_id) if self._open else ("", 0.0, None)
        if token != self._token or until <= time.time():
            if token and token != self._token:
                raise held(self.actor_id, holder)
            raise ActorHeldError(f"the lease of actor {self.actor_id} was closed, or not renewed in time: take another")

    def renew(self) -> None:
        """Hold it for its time from now on. Raises ActorHeldError if it was lost; OSError."""
        self.check()
        self._objects.write(self._name, self._content())

    def close(self) -> None:
        """Let others have the actor. Idempotent."""
        if self._open:
            with suppress(ActorHeldError, OSError):  # then it is another's, or runs out
                self.check()
                self._objects.remove(self._name)
            self._open = False

    def _content(self) -> bytes:
        until = time.time() + self._seconds
        return json.dumps({"token": self._token, "until": until, **asdict(self._holder)}).encode()


def holder(objects: Objects, actor_id: str) -> Holder | None:
    """Who holds the lease; None if nobody does. Raises OSError."""
    _, until, found = _read(objects, actor_id)
    return found if until > time.time() else None


def _name(actor_id: str) -> str:
    return f"leases/{actor_id}"


def _read(objects: Objects, actor_id: str) -> tuple[str, float, Holder | None]:
    """Token, end and holder of a lease; an end of 0 if there is none, or it cannot be read."""
    try:
        data = objects.read(_name(actor_id), 4096)
        fields = json.loads(data)
        return str(fields["token"]), float(fields["until"]), Holder.from_json(data)
    except FileNotFoundError:
        return "", 0.0, None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return "", 0.0, None
