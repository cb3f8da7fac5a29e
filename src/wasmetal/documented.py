"""Enumerations that carry their documentation."""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class Documented(IntEnum):
    """An enumeration whose members are written ``NAME = number, "documentation"``."""

    doc: str

    def __new__(cls, number: int, doc: str = "") -> Self:
        """The member of that number."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.doc = doc
        return member
