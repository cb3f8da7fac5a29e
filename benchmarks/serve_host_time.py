"""The server's time for each token that it streams, on a device that computes nothing.

    python -m benchmarks.serve_host_time --clients 1,8,32

As ``host_time``, but from the socket on: ``benchmarks.http_load``, in a process of its own, streams completions of a
model with the vocabulary of Llama 3, whose submissions take as long as a 1B model's on an H200, or no time
(``--device-us 0,0,0``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from urllib.parse import urlsplit

import typer

from benchmarks import random_model
from benchmarks.host_time import H200_US, NoBackend, time_batches
from wasmetal import load_model
from wasmetal.cli.app import SWITCH_SECONDS
from wasmetal.device.opened import OpenDevice
from wasmetal.models import Model
from wasmetal.serve.app import application
from wasmetal.serve.engine import Engine
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.server import Server, listen

CONTEXT = 512


def main(
    clients: Annotated[str, typer.Option(help="How many at once, separated by commas.")] = "1,8,32",
    requests: Annotated[int, typer.Option(min=1, help="Of each client, one after another.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="The one with the most tokens a second is shown.")] = 2,
    piece_tokens: Annotated[int, typer.Option(min=1, max=128, help="As of the server.")] = ServerLimits().piece_tokens,
    device_us: Annotated[str, typer.Option(help="As of host_time.")] = H200_US,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure, and print a table or JSON."""
    one, more, each = (float(part) * 1e-6 for part in device_us.split(","))
    numbers = [int(part) for part in clients.split(",")]
    random_model.SHAPES["wide"] = replace(random_model.SHAPES["tiny"], vocabulary=128_256)
    results = []
    backend = NoBackend()
    with TemporaryDirectory() as folder, OpenDevice(backend) as device:
        path = Path(folder, "wide.gguf")
        random_model.write(path, "Q8_0", "wide")
        with (
            load_model(path, device, context=CONTEXT, contexts=max(numbers) + 1, prefixes=1) as model,
            _serving(model, ServerLimits(running=max(numbers), piece_tokens=piece_tokens)) as address,
        ):
            _load(address, model.name, 1, 1)
            time_batches(model, backend, (one, more, each))
            for number in numbers:
                measured = [_measured(address, model, number, requests) for _ in range(rounds)]
                results.append(max(measured, key=lambda some: some["tokens_s"]))
    if as_json:
        json.dump({"device_us": device_us, "results": results}, sys.stdout, indent=1)
        print()
        return
    print("clients  tokens/s  processor µs/token  batch  first p50/p99, ms  gap p50/p99, ms  pieces")
    for some in results:
        first, gap = ([f"{1e3 * some[f'{what}_{part}']:.1f}" for part in ("p50", "p99")] for what in ("first", "gap"))
        print(
            f"{some['clients']:7}  {some['tokens_s']:8.0f}  {some['processor_us']:18.0f}  {some['batch']:5.1f}  "
            f"{' / '.join(first):>17}  {' / '.join(gap):>15}  {some['pieces']:6.1f}"
        )


def _measured(address: str, model: Model, clients: int, requests: int) -> dict[str, float]:
    before, batches, jobs = time.process_time(), model.batches.submitted, model.batches.jobs
    figures = _load(address, model.name, clients, requests)
    spent = time.process_time() - before
    size = (model.batches.jobs - jobs) / (model.batches.submitted - batches)
    return figures | {"processor_us": spent / figures["tokens"] * 1e6, "batch": size}


def _load(address: str, name: str, clients: int, requests: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.http_load", address, "--model", name, "--clients", str(clients)]
    command += ["--requests", str(requests), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)  # type: ignore[no-any-return]


@contextmanager
def _serving(model: Model, limits: ServerLimits) -> Iterator[str]:
    """Serve it on a thread, at an address."""
    addresses: list[str] = []
    ready = threading.Event()

    def started(address: str) -> None:
        addresses.append(urlsplit(address).netloc)
        ready.set()

    server = Server(application(Engine([model], limits)), listen("127.0.0.1", 0), started)
    thread = threading.Thread(target=server.run)
    thread.start()
    ready.wait(60)
    try:
        yield addresses[0]
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    sys.setswitchinterval(SWITCH_SECONDS)
    typer.run(main)
