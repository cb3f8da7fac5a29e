"""Clients that go away, guests that fail, a server that ends, and one that is busy."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.cli.command import SCRIPT
from tests.serve.serving import PATIENCE, Serving, serving, wait_for
from wasmetal.device.base import Submission
from wasmetal.models import Model
from wasmetal.models.lm.jobs import Job
from wasmetal.models.lm.passes import Pass
from wasmetal.serve.engine import Engine
from wasmetal.serve.generation import Generation
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.protocol import Request, Sampling

LONG: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 4000, "logit_bias": {"0": -100, "2": -100}}
"""A completion of a second or more."""
SHORT: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 2}


@pytest.fixture
def one_at_a_time(tiny: Model) -> Iterator[Serving]:
    with serving(Engine([tiny], ServerLimits(running=1, waiting=1))) as server:
        yield server


def begin(server: Serving, **options: Any) -> tuple[http.client.HTTPConnection, Any]:
    """A long completion whose stream has begun."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    body = json.dumps(LONG | {"stream": True} | options)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    response.readline()
    return connection, response


def close(connection: http.client.HTTPConnection, response: Any) -> None:
    """Both hold the socket."""
    response.close()
    connection.close()


def test_a_client_that_goes_away_stops_its_completion(one_at_a_time: Serving) -> None:
    begun = begin(one_at_a_time)
    close(*begun)
    wait_for(lambda: not one_at_a_time.engine.tasks)
    assert one_at_a_time.metric("wasmetal_completion_tokens_total") < LONG["max_tokens"]
    assert one_at_a_time.ask("/v1/completions", SHORT)[0] == 200  # in its place


def test_so_does_one_that_waits_for_the_whole_answer(one_at_a_time: Serving) -> None:
    engine = one_at_a_time.engine
    data = json.dumps(LONG).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    for waiting in (0, 1):
        with socket.create_connection((one_at_a_time.host, one_at_a_time.port)) as connection:
            others = begin(one_at_a_time) if waiting else None
            connection.sendall(f"{head}{len(data)}\r\n\r\n".encode() + data)
            wait_for(lambda waiting=waiting: len(engine.tasks) == 1 + waiting)  # type: ignore[misc]
        wait_for(lambda waiting=waiting: len(engine.tasks) == waiting)  # type: ignore[misc]
        if others:
            close(*others)
    wait_for(lambda: not engine.tasks)
    assert 'status="499"' in one_at_a_time.ask("/metrics")[1]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(Request([30, 40], 4000, Sampling(biases={0: -100.0, 2: -100.0})), id="the guest chooses"),
        pytest.param(Request([5], 4000, Sampling(top_k=64, seed=3), piece=1), id="the device chooses"),
    ],
)
def test_decoding_stops_within_two_tokens(tiny: Model, request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, begun = tiny._scheduler, 0
    start = scheduler._start

    def counted(taken: Pass, jobs: Sequence[Job]) -> Submission:
        nonlocal begun
        begun += max(job.draws.steps if job.draws else 1 for job in jobs)
        return start(taken, jobs)

    async def generate() -> int:
        engine = Engine([tiny])
        async with Generation(engine, tiny, [request_]) as generation:
            events = generation.events()
            for _ in range(5):
                await anext(events)
            current = scheduler._current
            ended = begun - (max(current.steps, 1) if current else 0)
            generation.cancel()
            assert [event async for event in events] == []
        await engine.close()
        return begun - ended

    monkeypatch.setattr(scheduler, "_start", counted)
    # One may have been in flight, and one begun before this thread got Python's lock.
    assert asyncio.run(generate()) <= 3


def test_a_full_queue(one_at_a_time: Serving) -> None:
    running = begin(one_at_a_time)
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(one_at_a_time.ask("/v1/completions", SHORT)[0]))
    waiting.start()
    wait_for(lambda: one_at_a_time.engine.admission.waiting == 1)
    with pytest.raises(openai.RateLimitError) as raised:
        one_at_a_time.client().completions.create(model="tiny", prompt="hello")
    assert int(raised.value.response.headers["retry-after"]) >= 1
    assert raised.value.code == "rate_limit_exceeded"
    close(*running)
    waiting.join(PATIENCE)
    assert answers == [200]


def test_a_server_that_ends_lets_running_requests_finish(tiny: Model) -> None:
    with serving(Engine([tiny], ServerLimits(running=2))) as server:
        connection, response = begin(server, max_tokens=300)
        server.server.drain()
        status, body, headers = server.ask("/v1/completions", SHORT)
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in headers
        assert server.ask("/health")[0] == 503
        assert response.read().endswith(b"data: [DONE]\n\n")
        connection.close()
        wait_for(lambda: server.server.should_exit)


def test_but_not_for_ever(tiny: Model) -> None:
    with serving(Engine([tiny], ServerLimits(running=2, drain_seconds=0.1))) as server:
        connection, response = begin(server)
        server.server.drain()
        assert json.loads(response.read().splitlines()[-2].removeprefix(b"data: "))["error"]["code"] == "shutting_down"
        connection.close()


@pytest.mark.parametrize("running", [False, True])
def test_sigterm(tiny_path: Path, running: bool) -> None:
    command = [SCRIPT, "serve", tiny_path, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith("wasmetal serves tiny on "), line
        url = line.split()[-1].removesuffix("/v1")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        if running:
            stream = client.completions.create(**LONG | {"max_tokens": 200}, stream=True)
            next(stream)
        process.send_signal(signal.SIGTERM)
        if running:
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


TRAPS = b'(module (memory (export "memory") 1) (func (export "_start") unreachable))'
EXITS = b"""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 3))))"""
NOTHING = b'(module (memory (export "memory") 1) (func (export "_start")))'
LOOPS = b'(module (memory (export "memory") 1) (func (export "_start") (loop br 0)))'
WRITES = """(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 16) "%s") (data (i32.const 0) "\\10\\00\\00\\00%s\\00\\00\\00")
  (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) unreachable))"""
TOKEN = r"\01\00\00\00\06\00\00\00\00\00\00\00\00\00\00\00\02\00\00\00hi"


@pytest.mark.parametrize(
    ("guest", "status"),
    [
        (TRAPS, 500),
        (EXITS, 500),
        (NOTHING, 500),
        (LOOPS, 500),
        ((WRITES % ("nonsense, not a record", r"\15")).encode(), 500),
    ],
    ids=["traps", "exits", "says nothing", "loops", "says nonsense"],
)
def test_a_guest_that_fails_is_an_error_of_its_own_request(tiny: Model, guest: bytes, status: int) -> None:
    with serving(Engine([tiny], ServerLimits(running=1, seconds=1), guest=guest)) as server:
        for stream in (False, True):
            found, body, _ = server.ask("/v1/completions", SHORT | {"stream": stream})
            assert (found, body["error"]["type"], body["error"]["code"]) == (
                status,
                "server_error",
                "completion_failed",
            )
        assert server.ask("/health")[0] == 200
        assert server.metric("wasmetal_completions_failed_total") == 2


def test_a_guest_that_traps_after_a_token(tiny: Model) -> None:
    guest = (WRITES % (TOKEN, r"\16")).encode()
    with serving(Engine([tiny], ServerLimits(running=1), guest=guest)) as server:
        status, text, _ = server.ask("/v1/completions", SHORT | {"stream": True})
        assert status == 200
        token, error = (json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line)
        assert token["choices"][0]["text"] == "hi"
        assert error["error"]["code"] == "completion_failed"
        with pytest.raises(openai.APIError, match="unreachable"):
            list(server.client().completions.create(model="tiny", prompt="x", stream=True))
