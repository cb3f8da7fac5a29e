"""What a guest that is a model replies: the answer's text, and after a zero byte, if there is one, JSON about it."""

from __future__ import annotations

import json
from contextlib import suppress

from wasmetal.errors import GuestError
from wasmetal.serve.errors import bad_request

_MOST = 4096
"""Bytes after the text."""
_REASONS = ("stop", "length")


class GuestReply:
    """Reads a reply, in pieces of any size. A guest is not believed."""

    def __init__(self, param: str) -> None:
        """``param``: the field of the request that is wrong if the guest refuses it."""
        self._param = param
        self._rest: bytearray | None = None

    def feed(self, piece: bytes) -> bytes:
        """The text in a piece. Raises GuestError if more follows the text than may."""
        if self._rest is None:
            text, zero, rest = piece.partition(b"\0")
            if zero:
                self._rest = bytearray(rest)
        else:
            text = b""
            self._rest += piece
        if self._rest is not None and len(self._rest) > _MOST:
            raise _nonsense()
        return text

    def refuse(self) -> None:
        """Raise ApiError if the guest has refused the request so far."""
        with suppress(GuestError):  # it is not complete, or nonsense: what else went wrong is said
            self.reason()

    def reason(self) -> str:
        """Why the text ends: "stop" or "length". Raises ApiError if the guest refuses the request, and GuestError."""
        if self._rest is None:
            return "stop"
        try:
            about = json.loads(self._rest)
        except (ValueError, RecursionError):
            raise _nonsense() from None
        match about:
            case {"error": str(error), **others} if not others:
                raise bad_request(error, self._param, "refused_by_guest")
            case {"finish_reason": reason, **others} if not others and reason in _REASONS:
                return str(reason)
        raise _nonsense()


def _nonsense() -> GuestError:
    return GuestError('what follows the text of the guest\'s reply is neither {"finish_reason": …} nor {"error": …}')
