"""What every engine of ``benchmarks.compare`` does, and what its figures are called."""

from __future__ import annotations

from dataclasses import dataclass, field

PROMPT, TOKENS = 512, 128
"""Tokens of the prompt, and decoded tokens, of one sequence alone."""
PROMPT_S, TOKENS_S = 128, 128
"""The same of each sequence where there are many at once."""

DECODE, PREFILL, FIRST = "decode", "prefill", "first token"
BYTES, BANDWIDTH, SHARE = "bytes a token", "bandwidth", "share of bandwidth"

Figures = dict[str, float]


def together(sessions: int) -> str:
    """The name of the figure: tokens a second that so many sequences decode, all together."""
    return f"decode of {sessions}"


def units(sessions: list[int]) -> dict[str, str]:
    """The unit of each figure."""
    speeds = [DECODE, PREFILL, *map(together, sessions)]
    return dict.fromkeys(speeds, "tokens/s") | {FIRST: "s", BYTES: "bytes", BANDWIDTH: "bytes/s", SHARE: "1"}


@dataclass(frozen=True)
class Measured:
    """Figures of one run, by engine, and the versions or devices that they are of."""

    figures: dict[str, Figures]
    about: dict[str, str] = field(default_factory=dict)


class NotMeasuredError(Exception):
    """An engine could not be measured; the message is one line that says why."""
