"""The contents of an actor's state, taken from the actor itself, for a fork of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasmetal.actor.capture import pieces_of
from wasmetal.actor.guest import ActorGuest
from wasmetal.actor.manifest import BLOCK_BYTES, DeviceBuffer, Session
from wasmetal.actor.memory_image import PAGE
from wasmetal.device.base import Buffer, Bytes
from wasmetal.host.commands import GuestBuffer
from wasmetal.host.functions.llm import OpenModel, OpenSession

if TYPE_CHECKING:
    from wasmetal.models import Session as ModelSession


class FromActor:
    """What :class:`Contents` asks for, from a guest none of whose code runs meanwhile.

    Sessions share their pages with the guest's. Memory is copied: the pages that differ from the initial image, since a
    new instance has the others already; and so are buffers.
    """

    def __init__(self, guest: ActorGuest) -> None:
        self._guest = guest
        self._held = dict(guest.handles.items())
        self.frozen = guest.frozen.fork()
        self.copied = 0
        """Bytes."""

    def memory(self, index: int, memory: Bytes) -> None:
        """Copy the pages that differ."""
        state = self._guest.state
        for page, data in state.images[index].differing(state.regions[index].view()):
            memory[page * PAGE : (page + 1) * PAGE] = 0 if data is None else data
            self.copied += PAGE

    def table(self, index: int) -> list[int | None]:
        """The functions in a table."""
        return self._guest.state.table(index)

    def buffer(self, slot: int, held: DeviceBuffer, buffer: Buffer) -> None:
        """Copy a buffer, through the host."""
        device, original = self._guest.grants.device, self._held[slot]
        assert device is not None
        assert isinstance(original, GuestBuffer)
        for index, piece in enumerate(pieces_of(self._guest, original)):
            device.write(buffer, index * BLOCK_BYTES, piece)
        self.copied += held.nbytes

    def session(self, slot: int, held: Session, opened: OpenModel) -> ModelSession:
        """A fork of the session."""
        original = self._held[slot]
        assert isinstance(original, OpenSession)
        return original.session.fork()
