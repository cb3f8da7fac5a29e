"""One completion of an answer: its text, and the log-probabilities of its tokens."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

from wasmetal.models import Tokenizer
from wasmetal.serve.protocol import End, News, Token

LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, as in OpenAI's API: JSON has no such number."""


@dataclass(slots=True)
class Choice:
    """What has come of one completion."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: str = ""
    """"stop" or "length", once it has ended."""
    drawn: int = 0
    cached: int = 0
    """Tokens of the prompt that were not run."""
    prompt: int = 0
    """Tokens of prompts that a guest has made itself."""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def add(self, event: News) -> str:
        """The text that is complete with this: a character may be split over several tokens."""
        if not isinstance(event, End):
            self.tokens += event
            piece = self._decoder.decode(b"".join([token.text for token in event]))
        else:
            self.reason, self.drawn = event.reason, event.drawn
            self.cached, self.prompt = event.cached, event.prompt
            piece = self._decoder.decode(b"", final=True)
        self.text += piece
        return piece


def spelled(tokenizer: Tokenizer, token: int) -> bytes:
    """A token's bytes; none for what a guest made up."""
    pieces = tokenizer.pieces()
    return bytes(pieces[token]) if token < len(pieces) else b""


def finite(logprob: float) -> float:
    """A log-probability that JSON can have."""
    return max(logprob, LEAST_LOGPROB) if logprob == logprob else LEAST_LOGPROB  # noqa: PLR0124 (NaN is not)
