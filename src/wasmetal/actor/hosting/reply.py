"""Replies of actors in a host: kept until they are read, so that no reader holds up an actor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from wasmetal.counters import Counters
from wasmetal.errors import GuestError
from wasmetal.host.tokens import TokenCounts


class PendingReply:
    """The reply to a message, as it is made. Any number of threads may read it, each from its beginning.

    Pieces can be read while the message is being handled. Its end, and so what :meth:`read` returns, comes when the
    message counts as handled: see ``durability`` of :class:`ActorHost`. A message that fails ends with its error, also
    for those who have read pieces already.
    """

    def __init__(self) -> None:
        self.counters, self.token_counts = Counters(), TokenCounts()
        """What the message has cost, once it has been handled; nothing if it was handled before (see its key)."""
        self.cancelled = False
        self._stop: Callable[[], object] | None = None
        self._pieces: list[bytes] = []
        self._error: BaseException | None = None
        self._done = False
        self._changed = threading.Condition()

    @property
    def done(self) -> bool:
        """Whether the message counts as handled, or has failed."""
        return self._done

    @property
    def error(self) -> BaseException | None:
        """Why the message has failed; None if it has not."""
        return self._error

    def __iter__(self) -> Iterator[bytes]:
        """The pieces as they come. At the end raises what :meth:`read` does."""
        index = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done or len(self._pieces) > index)  # noqa: B023 (called at once)
                pieces, done = self._pieces[index:], self._done
            yield from pieces
            index += len(pieces)
            if done:
                break
        if self._error:
            raise self._error

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end, at most so long; return whether it has come."""
        with self._changed:
            return self._changed.wait_for(lambda: self._done, seconds)

    def read(self, seconds: float | None = None) -> bytes:
        """The whole reply, once the message counts as handled.

        Raises GuestError after ``seconds`` without an end (the message is handled all the same), and why the message
        failed: GuestTrapError, LimitError, ActorHeldError, SnapshotError and what :class:`Actor` raises.
        """
        if not self.wait(seconds):
            raise GuestError(f"the actor has not replied within {seconds:g} seconds; it goes on: read again")
        if self._error:
            raise self._error
        return b"".join(self._pieces)

    def cancel(self) -> None:
        """Nobody wants the message handled any more: it fails, unless it counts as handled. From any thread.

        An actor in the middle of it is stopped, and goes back to its last snapshot.
        """
        with self._changed:
            self.cancelled = True
            stop = self._stop
        if stop:
            stop()

    # ---- For the host

    def stopped_by(self, stop: Callable[[], object] | None) -> None:
        """What stops the actor that handles the message; None: none does."""
        with self._changed:
            self._stop = stop
        if stop and self.cancelled:
            stop()

    def add(self, piece: bytes) -> None:
        """A piece was made."""
        with self._changed:
            self._pieces.append(piece)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """The message counts as handled, or has failed. The first call decides."""
        with self._changed:
            if not self._done:
                self._error, self._done = error, True
            self._changed.notify_all()


def read_within(pieces: Iterator[bytes], reply: PendingReply, most: int) -> tuple[bytes, int]:
    """Pass pieces on to a reply; return them, and how many bytes they have. Stops after more than ``most`` bytes."""
    kept, total = [], 0
    for piece in pieces:
        total += len(piece)
        if total > most:
            break
        kept.append(piece)
        reply.add(piece)
    return b"".join(kept), total
