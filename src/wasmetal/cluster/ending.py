"""How a message ended on another node: what its stream of pieces brings last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from wasmetal.errors import GuestError, WasmetalError


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a message. An error travels as its name and its text: pickles of exceptions run code."""

    error: str = ""
    """Name of a class of :mod:`wasmetal.errors`; empty if the message was handled."""
    text: str = ""
    elsewhere: bool = False
    """Whether the node did not take the message, because the actor is not there."""

    @classmethod
    def of(cls, error: WasmetalError) -> Self:
        """The end by an error."""
        return cls(type(error).__name__, str(error))

    def check(self) -> None:
        """Raise the error, if there was one; GuestError if it is of no kind that is known here."""
        if self.error:
            raise next((kind for kind in _kinds(WasmetalError) if kind.__name__ == self.error), GuestError)(self.text)


def _kinds(base: type[WasmetalError]) -> Iterator[type[WasmetalError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)
