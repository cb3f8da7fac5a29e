"""What holds a completion to a grammar, whatever its guest does."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from wasmetal.errors import GuestError
from wasmetal.models.lm.grammar import Grammar
from wasmetal.serve.protocol import Drawn, End, Token

if TYPE_CHECKING:
    from wasmetal.models import Tokenizer


class Constraint:
    """Tells the guest of one completion which tokens it may draw, and checks those that it draws and writes."""

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer, cut: bool = False) -> None:
        """The grammar becomes the constraint's own. ``cut``: whether a stop string may end the text."""
        self._grammar = grammar
        self._pieces = tokenizer.pieces()
        self._ends = tokenizer.end_of_generation
        self._may_cut = cut
        self._ended = self._was_cut = False
        self._unwritten: deque[int] = deque()
        """Tokens that were drawn, and not written yet."""

    def mask(self) -> bytes:
        """The tokens that may be drawn next, for :func:`mask_read` of ``guests/complete/request.h``.

        Raises GuestError if there are none.
        """
        mask = self._grammar.mask()
        if self._ended or not mask.any():
            raise GuestError("no token of the model goes on as the grammar wants, or the grammar takes too much work")
        return mask.tobytes()

    def check(self, record: Token | End | Drawn) -> None:
        """Raise GuestError if the guest may not write this now."""
        if isinstance(record, Drawn):
            self._draw(record.token)
        elif isinstance(record, Token):
            self._write(record)
        elif not (self._was_cut or self._may_cut) and (self._unwritten or (record.reason == "stop") != self._ended):
            raise GuestError("the guest ended a text that does not end there")

    def _draw(self, token: int) -> None:
        if token in self._ends and self._grammar.complete and not self._ended:
            self._ended = True
        elif token in self._ends or self._ended or not self._grammar.take(token):
            raise GuestError(f"the guest drew token {token}, which the grammar does not allow")
        else:
            self._unwritten.append(token)

    def _write(self, record: Token) -> None:
        drawn = self._unwritten.popleft() if self._unwritten else None
        piece = b"" if drawn is None else bytes(self._pieces[drawn])
        cut = self._may_cut and len(record.text) < len(piece) and piece.startswith(record.text)
        if self._was_cut or record.token != drawn or not (cut or record.text == piece):
            raise GuestError("the guest wrote another text than it drew")
        self._was_cut = cut
