"""Clients of an OpenAI-compatible server that stream completions, all at the same time, and when their tokens came.

    python -m benchmarks.http_load 127.0.0.1:8080 --model NAME --clients 8 --json

Each client sends one request after another, each on a connection of its own, since llama.cpp closes them: a prompt of
random tokens, which no server has seen before, decoded greedily. The bytes that come are noted with the moment, and
read when the answer is complete, so that the clients take little of the processor.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer

_WORDS = 94
"""Prompts have the tokens below this number: in the models of ``random_model`` those of letters, as which what they say
begins. A byte that is no whole character would be told of with the next token."""
_LAST = b"\r\n0\r\n\r\n"
"""The last chunk of a body, after the end of another."""


@dataclass(frozen=True)
class Load:
    """What each client asks for."""

    model: str
    requests: int = 4
    prompt_tokens: int = 128
    tokens: int = 128
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the requests' bodies."""

    def body(self, rng: random.Random) -> bytes:
        """Of the next request."""
        return json.dumps(
            {
                "model": self.model,
                "prompt": [rng.randrange(_WORDS) for _ in range(self.prompt_tokens)],
                "max_tokens": self.tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            | self.extra
        ).encode()


@dataclass
class Figures:
    """Of a run of all clients. Seconds, unless it says otherwise."""

    clients: int
    tokens: int
    """That were generated, as the server counts them."""
    tokens_s: float
    """From the first request until the last answer is complete."""
    first_p50: float
    """From a request until the first piece of its text."""
    first_p99: float
    between_mean: float
    """From the first piece of a text until its end, for each token after the first."""
    gap_p50: float
    """Between two pieces of a text, whatever they hold,"""
    gap_p99: float
    pieces: float
    """and how many there are for a text."""
    processor: float
    """Of the clients' process, for each second."""


class _Client(asyncio.Protocol):
    """A connection for one request, and what comes on it."""

    def __init__(self) -> None:
        self.data: list[tuple[float, bytes]] = []
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        self.data.append((time.perf_counter(), data))
        tail = b"".join(part for _, part in self.data[-len(_LAST) :]) if len(data) < len(_LAST) else data
        if tail.endswith(_LAST):
            self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed: what is missing is seen when the answer is read."""
        self._ended()

    def _ended(self) -> None:
        if not self.end.done():
            self.end.set_result(None)


async def _ask(host: str, port: int, head: bytes, body: bytes) -> list[tuple[float, bytes]]:
    """Send a request; return the answer's bytes with their moments."""
    transport, client = await asyncio.get_running_loop().create_connection(_Client, host, port)
    transport.write(head % len(body) + body)
    await client.end
    transport.close()
    return client.data


@dataclass(frozen=True)
class _Answer:
    begin: float
    moments: Sequence[float]
    """When pieces of the text came."""
    tokens: int


def run(host: str, port: int, load: Load, clients: int, seed: int = 0) -> Figures:
    """Have so many clients ask for so many completions each, and wait for all. Raises RuntimeError if one fails."""
    begin, before = time.perf_counter(), time.process_time()
    answers = asyncio.run(_all(host, port, load, clients, seed))
    wall, processor = time.perf_counter() - begin, time.process_time() - before
    spent = max(each.moments[-1] for each in answers) - min(each.begin for each in answers)
    firsts = [each.moments[0] - each.begin for each in answers]
    gaps = [b - a for each in answers for a, b in zip(each.moments, each.moments[1:], strict=False)]
    tokens = sum(each.tokens for each in answers)
    between = sum(each.moments[-1] - each.moments[0] for each in answers) / max(tokens - len(answers), 1)
    return Figures(
        clients, tokens, tokens / spent, _part(firsts, 0.5), _part(firsts, 0.99), between, _part(gaps, 0.5),
        _part(gaps, 0.99), sum(len(each.moments) for each in answers) / len(answers), processor / wall,
    )  # fmt: skip


async def _all(host: str, port: int, load: Load, clients: int, seed: int) -> list[_Answer]:
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        "Content-Length: %d\r\n\r\n"
    ).encode()

    async def one(number: int) -> list[_Answer]:
        rng = random.Random(seed * 1000 + number)
        answers = []
        for _ in range(load.requests):
            begin = time.perf_counter()
            answers.append(_read(begin, await _ask(host, port, head, load.body(rng))))
        return answers

    return [answer for some in await asyncio.gather(*map(one, range(clients))) for answer in some]


def _read(begin: float, data: Sequence[tuple[float, bytes]]) -> _Answer:
    """What has come of a text, and when."""
    text, moments, tokens, moment = bytearray(), [], 0, begin
    for moment, part in _body(data):
        text += part
        *events, text = text.split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: {"):
                continue
            said = json.loads(event[6:])
            if "error" in said:
                raise RuntimeError(f"the server answers: {said['error']}")
            if usage := said.get("usage"):
                tokens = usage["completion_tokens"]
            if any(choice.get("text") for choice in said["choices"]):
                moments.append(moment)
    if not tokens:
        raise RuntimeError("the server does not say how many tokens there are")
    return _Answer(begin, moments or [moment], tokens)  # a random model may write no character at all


def _body(data: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The chunks of an answer's body, each with the moment at which its last byte came."""
    rest, in_head = bytearray(), True
    for moment, part in data:
        rest += part
        if in_head:
            head, end, body = rest.partition(b"\r\n\r\n")
            if not end:
                continue
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise RuntimeError(f"the server answers: {rest.decode(errors='replace')}")
            rest, in_head = body, False
        while b"\r\n" in rest:
            length, _, body = rest.partition(b"\r\n")
            size = int(length, 16)
            if len(body) < size + 2:
                break
            yield moment, bytes(body[:size])
            rest = body[size + 2 :]


def _part(values: Sequence[float], part: float) -> float:
    """The value below which this part of them is."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)] if values else 0.0


def main(
    address: Annotated[str, typer.Argument(help="HOST:PORT of the server.")],
    model: Annotated[str, typer.Option(help="The model's name.")],
    clients: Annotated[int, typer.Option(min=1)] = 1,
    requests: Annotated[int, typer.Option(min=1, help="Of each client, one after another.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="Generated for each request.")] = 128,
    extra: Annotated[str, typer.Option(help="More fields of the requests' bodies, as JSON.")] = "{}",
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Stream completions from a server with several clients at once, and say when the tokens came."""
    host, _, port = address.rpartition(":")
    load = Load(model, requests, prompt_tokens, tokens, json.loads(extra))
    figures = run(host, int(port), load, clients, seed)
    if as_json:
        print(json.dumps(asdict(figures)))
    else:
        print("\n".join(f"{name}: {value:.6g}" for name, value in asdict(figures).items()))


if __name__ == "__main__":
    typer.run(main)
