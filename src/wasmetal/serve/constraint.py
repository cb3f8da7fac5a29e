"""What holds a completion to a grammar, whatever its guest does."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import GuestError
from wasmetal.models.lm.grammar import Grammar
from wasmetal.serve.errors import ApiError, bad_request
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
        self._mask: NDArray[np.int32] | None = None
        """That of the next token, once it is known."""
        self._unwritten: deque[int] = deque()
        """Tokens that were drawn, and not written yet."""

    def mask(self) -> bytes:
        """The tokens that may be drawn next, for :func:`mask_read` of ``guests/complete/request.h``.

        Raises ApiError if there are none.
        """
        if self._mask is None:
            self._mask = self._grammar.mask()
        if not self._mask.any():
            raise _stuck("no token goes on as the grammar wants, or the grammar takes too much work")
        return self._mask.tobytes()

    def check(self, record: Token | End | Drawn) -> None:
        """Raise GuestError if the guest may not write this now; ApiError if the grammar takes too much work."""
        if isinstance(record, Drawn):
            self._draw(record.token)
        elif isinstance(record, Token):
            self._write(record)
        elif not (self._was_cut or self._may_cut) and (self._unwritten or (record.reason == "stop") != self._ended):
            raise GuestError("the guest ended a text that does not end there")

    def _draw(self, token: int) -> None:
        mask = np.frombuffer(self.mask(), np.uint32)
        allowed = not self._ended and token < 32 * mask.size and mask[token // 32] >> token % 32 & 1
        if not allowed or (token in self._ends and not self._grammar.complete):
            raise GuestError(f"the guest drew token {token}, which the grammar does not allow")
        self._mask = None
        if token in self._ends:
            self._ended = True
        elif self._grammar.take(token):
            self._unwritten.append(token)
        else:
            raise _stuck("the grammar takes too much work")

    def _write(self, record: Token) -> None:
        drawn = self._unwritten.popleft() if self._unwritten else None
        piece = b"" if drawn is None else bytes(self._pieces[drawn])
        cut = self._may_cut and len(record.text) < len(piece) and piece.startswith(record.text)
        if self._was_cut or record.token != drawn or not (cut or record.text == piece):
            raise GuestError("the guest wrote another text than it drew")
        self._was_cut = cut


def _stuck(message: str) -> ApiError:
    """What has begun cannot be gone on with: the fault is the grammar's, not the guest's."""
    return bad_request(message, code="grammar_failed")
