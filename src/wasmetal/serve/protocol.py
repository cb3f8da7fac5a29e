"""What the server and a completion's guest say to each other: ``guests/complete/request.h`` and ``reply.h``."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wasmetal.errors import GuestError
from wasmetal.models.lm.grammar import Grammar
from wasmetal.models.lm.heads import MOST_TOP
from wasmetal.serve.limits import PIECE_TOKENS

MAX_STOPS = 16
MAX_STOP = 1024
"""Most stop strings, and most bytes of one."""
_MAGIC = 0x33636D77
_REQUEST = struct.Struct("<6I5f6I")
_TOKEN = struct.Struct("<IIfII")
_TOP = struct.Struct("<If")
_END = struct.Struct("<III")
_DRAWN = struct.Struct("<II")
_KIND = struct.Struct("<I")
_TOKEN_KIND, _END_KIND, _DRAWN_KIND = 1, 2, 3
_RECORDS = {_TOKEN_KIND: _TOKEN, _END_KIND: _END, _DRAWN_KIND: _DRAWN}
_REASONS = {1: "stop", 2: "length"}
_MOST_TEXT = 1 << 16
"""More bytes than any token has."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. The defaults are those of OpenAI's API."""

    temperature: float = 1.0
    """0: always the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest; 0: all."""
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens that were drawn: once, and each time."""
    biases: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    seed: int = 0
    """64 bits."""


@dataclass(frozen=True, slots=True)
class Request:
    """A completion that is asked for."""

    prompt: Sequence[int]
    """Tokens, at least one."""
    max_tokens: int
    sampling: Sampling
    min_tokens: int = 0
    """Before so many tokens, nothing that ends the text is drawn."""
    stops: Sequence[bytes] = ()
    logprobs: int | None = None
    """How many of the likeliest tokens are wanted with each token, 0 to MOST_TOP; None: no log-probabilities at all."""
    grammar: Grammar | None = None
    """What the text obeys, unless it ends early."""
    piece: int = PIECE_TOKENS
    """Most tokens that are drawn before the guest writes them together, 1 or more."""

    def encode(self) -> bytes:
        """The bytes that the guest reads."""
        s = self.sampling
        header = _REQUEST.pack(
            _MAGIC,
            len(self.prompt),
            self.max_tokens,
            self.min_tokens,
            0 if self.logprobs is None else self.logprobs + 1,
            s.top_k,
            s.temperature,
            s.top_p,
            s.min_p,
            s.presence_penalty,
            s.frequency_penalty,
            len(s.biases),
            len(self.stops),
            s.seed & 0xFFFFFFFF,
            s.seed >> 32,
            self.grammar is not None,
            self.piece,
        )
        biases = b"".join(_TOP.pack(token, bias) for token, bias in s.biases.items())
        stops = b"".join(_KIND.pack(len(stop)) + stop for stop in self.stops)
        return header + np.asarray(list(self.prompt), "<u4").tobytes() + biases + stops


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a completion."""

    token: int
    text: bytes
    """Its bytes, without those that a stop string cut off; they need not be whole characters."""
    logprob: float
    """0.0 unless log-probabilities are wanted."""
    tops: Sequence[tuple[int, float]] = ()
    """The likeliest tokens with their log-probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, as soon as it is drawn, if the text obeys a grammar."""

    token: int


@dataclass(frozen=True, slots=True)
class End:
    """The end of a completion."""

    reason: str
    """"stop" or "length"."""
    drawn: int
    """Tokens that were drawn, with those that ended the text and those that a stop string cut off."""
    cached: int = 0
    """Tokens of the prompt that were not run, since another completion had. The guest does not say; the host knows."""
    prompt: int = 0
    """Tokens of the prompts that a guest has made itself, where the request has no tokens."""


News = Sequence[Token] | End
"""What comes of a completion at a time: tokens, at least one, or its end."""


class ReplyReader:
    """Reads what a guest writes, in pieces of any size. A guest is not believed: see :meth:`feed`."""

    def __init__(self) -> None:
        self._rest = b""
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Token | End | Drawn]:
        """The records that are complete with these bytes. Raises GuestError if they are no such records."""
        self._rest += data
        while (record := self._next()) is not None:
            yield record

    def _next(self) -> Token | End | Drawn | None:
        rest = self._rest
        if len(rest) < _KIND.size:
            return None
        (kind,) = _KIND.unpack_from(rest)
        if self._ended or kind not in _RECORDS:
            raise GuestError("the guest's reply is not one of a completion")
        if len(rest) < _RECORDS[kind].size:
            return None
        if kind == _DRAWN_KIND:
            self._rest = rest[_DRAWN.size :]
            return Drawn(_DRAWN.unpack_from(rest)[1])
        return self._end(rest) if kind == _END_KIND else self._token(rest)

    def _end(self, rest: bytes) -> End:
        _, reason, drawn = _END.unpack_from(rest)
        if reason not in _REASONS or len(rest) > _END.size:
            raise GuestError("the guest's reply is not one of a completion")
        self._rest, self._ended = b"", True
        return End(_REASONS[reason], drawn)

    def _token(self, rest: bytes) -> Token | None:
        _, token, logprob, tops, length = _TOKEN.unpack_from(rest)
        if tops > MOST_TOP or length > _MOST_TEXT:
            raise GuestError("the guest's reply is not one of a completion")
        text = _TOKEN.size + tops * _TOP.size
        end = text + length
        if len(rest) < end:
            return None
        self._rest = rest[end:]
        return Token(token, rest[text:end], logprob, tuple(_TOP.iter_unpack(rest[_TOKEN.size : text])))
