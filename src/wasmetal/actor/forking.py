"""The contents of an actor's state, taken from the actor itself, for a fork of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wasmetal.actor.capture import pieces_of
from wasmetal.actor.fork_image import ForkImage, can_map, copy_pages
from wasmetal.actor.guest import ActorGuest
from wasmetal.actor.manifest import BLOCK_BYTES, DeviceBuffer, Session
from wasmetal.actor.memory_image import PAGE
from wasmetal.device.base import Buffer
from wasmetal.host.commands import GuestBuffer
from wasmetal.host.functions.llm import OpenModel, OpenSession, ready
from wasmetal.memory import Region

if TYPE_CHECKING:
    from wasmetal.models import Session as ModelSession


class FromActor:
    """What :class:`Contents` asks for, from a guest none of whose code runs meanwhile.

    Sessions share their pages with the guest's. Of memory the pages that differ from the initial image are mapped or
    copied, since a new instance has the others already. Buffers are copied.
    """

    def __init__(self, guest: ActorGuest) -> None:
        self._guest = guest
        self._held = dict(guest.handles.items())
        self.frozen = guest.frozen.fork()
        self.images: dict[int, ForkImage] = {}
        """That the fork's memories have pages of."""
        self.copied = 0
        """Bytes, for this fork and for others that map them too."""

    def memory(self, index: int, memory: Region) -> None:
        """Map the pages that differ, copy on write, or copy them."""
        state = self._guest.state
        pages = list(state.images[index].differing(state.regions[index].view()))
        if can_map(self._guest.grants.device):
            copied = self._guest.fork_images.give(index, memory, pages, self.images)
        else:
            copied = copy_pages(memory, pages)
        self.copied += copied * PAGE

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

    def session(self, slot: int, held: Session, opened: OpenModel) -> Callable[[], ModelSession]:
        """A fork of the session."""
        original = self._held[slot]
        assert isinstance(original, OpenSession)
        return ready(original.session.fork())
