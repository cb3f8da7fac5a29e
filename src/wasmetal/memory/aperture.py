"""Apertures: page ranges of a region that a device may see."""

from __future__ import annotations

from typing import Protocol


class Aperture(Protocol):
    """A borrowed page range. (Placeholder for the contract; the real class replaces this.)"""

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...
