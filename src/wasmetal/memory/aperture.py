"""Apertures: page ranges of a region that a device may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.pages import Pages

if TYPE_CHECKING:
    from wasmetal.memory.region import Region


class Aperture:
    """A borrowed range of whole, accessible pages. Made by :meth:`Region.aperture` and :meth:`Region.covering`.

    The pages stay mapped until the aperture is closed or dropped, even if the region, the guest or the engine goes
    first. They do not move when the region grows.
    """

    def __init__(self, region: Region, offset: int, nbytes: int) -> None:
        """Borrow a range that the region has checked."""
        self._pages: Pages | None = region.pages
        self.region: Final = region
        self.offset: Final = offset
        """Bytes from the region's start."""
        self.address: Final = region.address + offset
        """Host address of the first byte; a multiple of the page size."""
        self.nbytes: Final = nbytes

    def view(self) -> NDArray[np.uint8]:
        """The bytes themselves, uint8 of shape [nbytes], not copied. Raises MemoryRefusedError once closed."""
        if self._pages is None:
            raise MemoryRefusedError("the aperture is closed; take its view before closing it")
        return self._pages.view(self.offset, self.nbytes)

    def close(self) -> None:
        """Release the pages. Idempotent."""
        self._pages = None
