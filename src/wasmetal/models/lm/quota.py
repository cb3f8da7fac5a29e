"""How the pages of a KV cache are divided among those who hold them.

Every holder is guaranteed the same share, ``pages // holders``, less what others held already when it came. Pages are
never taken back, so what is guaranteed is kept free: nobody gets a page that somebody with fewer pages is guaranteed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wasmetal.errors import OutOfDeviceMemoryError


@dataclass(eq=False, slots=True)
class Holder:
    """Somebody who holds pages in any number of sessions: a guest, or whoever loaded the model."""

    charge: Callable[[int], None]
    """Called with the bytes of pages before they are taken, and with a negative number once they are free again, on any
    thread that has the model's lock. It may refuse pages by raising an error."""
    held: int = 0
    """Pages held, each counted once, however many sessions share it."""
    users: int = 1
    """How many guests are this holder together: forks of one actor."""
    prefixes: str | None = None
    """With whom its sessions share what they begin with: all holders of the same scope; None: with nobody."""
    reused: int = 0
    """Tokens that its sessions did not have to run, since others had."""


class Quota:
    """The shares of one cache. The model's lock guards it."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._holders: list[Holder] = []

    def join(self, charge: Callable[[int], None]) -> Holder:
        """A new holder. Raises OutOfDeviceMemoryError if not even a page could be guaranteed to it."""
        holder = Holder(charge)
        self._holders.append(holder)
        free = self._pages - sum(each.held for each in self._holders)
        if self._level(free) < 1:
            self.leave(holder)
            raise OutOfDeviceMemoryError(
                f"the key-value cache has no page for another guest: {free} of {self._pages} are free, and "
                f"{len(self._holders)} others have a share; close some, or load the model with more contexts"
            )
        return holder

    def leave(self, holder: Holder) -> None:
        """One of those who are the holder takes no more pages; once all have left, nothing is guaranteed to it."""
        holder.users -= 1
        if not holder.users:
            self._holders.remove(holder)

    def room(self, holder: Holder, free: int) -> int:
        """How many of the ``free`` pages a holder may take."""
        level = self._level(free)
        return free - sum(max(0, level - other.held) for other in self._holders if other is not holder)

    def _level(self, free: int) -> int:
        """How many pages each holder could have if those with the fewest got all that are free."""
        pages = free
        for below, held in enumerate(sorted(holder.held for holder in self._holders)):
            if below and pages <= held * below:
                return pages // below
            pages += held
        return pages // len(self._holders)
