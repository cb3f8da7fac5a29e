"""The server on Ray Serve: replicas, and a new version while clients go on asking."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import wasmetal
from tests.serve.serving import Serving
from wasmetal import open_device
from wasmetal.errors import DeviceError
from wasmetal.models import Model
from wasmetal.serve.engine import Engine

WASMETAL = [sys.executable, "-c", "from wasmetal.cli import main; main()"]
ASK: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 6, "temperature": 0, "logit_bias": {"2": -100}}
STARTS = 120.0


def test_a_device_that_is_lost_is_no_good_health(tiny: Model) -> None:
    engine = Engine([tiny])
    engine.check_health()

    class Lost:
        device = open_device("cpu")

    Lost.device.close()
    engine.models["lost"] = Lost()  # type: ignore[assignment]
    with pytest.raises(DeviceError):
        engine.check_health()
    engine.pool.shutdown()


@contextmanager
def command(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A ``wasmetal serve`` that runs, and the lines that it writes until it serves."""
    more = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)} | environment
    process = subprocess.Popen(
        [*WASMETAL, "serve", *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=os.environ | more
    )
    timer = threading.Timer(STARTS, process.kill)
    timer.start()
    lines: list[str] = []
    try:
        assert process.stderr
        for line in process.stderr:
            lines.append(line)
            if line.startswith("wasmetal serves"):
                break
        assert process.poll() is None, lines
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process, lines
    finally:
        timer.cancel()
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def test_what_ray_is_told_of_scaling() -> None:
    on_ray = pytest.importorskip("wasmetal.serve.on_ray", reason="wasmetal[ray] is not installed", exc_type=ImportError)
    assert [on_ray.Scale(count).options(gpus, 8) for count, gpus in ((None, 0), (None, 3), (2, 3))] == [
        {"num_replicas": 1}, {"num_replicas": 3}, {"num_replicas": 2}
    ]  # fmt: skip
    for scale, expected in (
        (on_ray.Scale(most=4), (1, 4, 8)),
        (on_ray.Scale(least=0, most=4, ongoing=2.5), (0, 4, 2.5)),
        (on_ray.Scale(least=2, most=2), (2, 2, 8)),
    ):
        told = scale.options(3, 8)["autoscaling_config"]
        assert (told.min_replicas, told.max_replicas, told.target_ongoing_requests) == expected


@pytest.mark.parametrize(
    "options",
    [
        ["--replicas", 2],
        ["--ray-max-replicas", 2],
        ["--ray", "--ray-min-replicas", 2],
        ["--ray", "--ray-target-requests", 2],
        ["--ray", "--ray-max-replicas", 2, "--replicas", 2],
        ["--ray", "--ray-max-replicas", 2, "--ray-min-replicas", 3],
    ],
)
def test_options_that_do_not_go_together(options: list[object]) -> None:
    done = wasmetal("serve", *map(str, options))
    assert (done.returncode, done.stdout) == (2, "")
    assert "replicas" in done.stderr


@pytest.mark.slow
def test_replicas_and_a_new_version(tiny_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="wasmetal[ray] is not installed", exc_type=ImportError)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (tiny_path, "--ray", "--device", "cpu", "--deterministic", "--port", port)
    with command(*options, "--replicas", 2) as (process, _):
        server = Serving(None, None, f"http://127.0.0.1:{port}")  # type: ignore[arg-type]

        def ask(_: int) -> tuple[int, str, int]:
            status, body, _ = server.ask("/v1/completions", ASK)
            return status, body["choices"][0]["text"], body["usage"]["completion_tokens"]

        with ThreadPoolExecutor(8) as pool:
            answers = set(pool.map(ask, range(40)))
            assert len(answers) == 1
            (first,) = answers
            assert (first[0], first[2]) == (200, 6)
            started = {server.ask("/v1/models")[1]["data"][0]["created"] for _ in range(40)}
            stream = server.client().completions.create(**ASK | {"max_tokens": 4}, stream=True)
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"

            ended = threading.Event()

            def go_on() -> set[tuple[int, int]]:
                found = set()
                while not ended.is_set():
                    status, _, tokens = ask(0)
                    found.add((status, tokens))
                return found

            def replicas_of(session: str) -> set[int]:
                headers = {"X-Session-Id": session}
                return {server.ask("/v1/models", headers=headers)[1]["data"][0]["created"] for _ in range(8)}

            sessions = [replicas_of(f"talk {number}") for number in range(12)]
            assert {len(each) for each in sessions} == {1}
            assert set().union(*sessions) == started
            prompt = {"prompt": "a long beginning " * 20}  # of several pages of the KV cache
            kept = {"X-Session-Id": "ann"}
            used = [server.ask("/v1/completions", ASK | prompt, headers=kept)[1]["usage"] for _ in range(4)]
            cached = [each["prompt_tokens_details"]["cached_tokens"] for each in used]
            assert cached[0] == 0 < min(cached[1:])

            clients = [pool.submit(go_on) for _ in range(3)]
            scale = ("--ray-min-replicas", 2, "--ray-max-replicas", 3)
            with command(*options, *scale, "--max-tokens", 2, RAY_ADDRESS="auto") as (second, _):
                assert second.wait(60) == 0
            ended.set()
            assert {status for client in clients for status, _ in client.result()} == {200}
            assert {tokens for client in clients for _, tokens in client.result()} == {6, 2}
        assert ask(0)[2] == 2
        assert not started & {server.ask("/v1/models")[1]["data"][0]["created"] for _ in range(40)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with pytest.raises(OSError, match="refused"):
        server.ask("/health")
