"""Our server beside llama.cpp's on one model file: the same load, in turns, in one run.

    python -m benchmarks.serve_compare llama-1b-f16.gguf --device cuda --llama-server /path/to/llama-server

Both listen on this machine alone, with a place for each client and a context that is long enough. The clients are those
of ``benchmarks.http_load``, in a process of their own. Tokens are counted as the servers count them. Random weights
(``benchmarks/random_model.py``) end no text early.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

OURS, THEIRS = "wasmetal", "llama-server"
_LOADING = 180
"""Seconds that a server may take to load the model."""
_EXTRA: dict[str, dict[str, Any]] = {OURS: {}, THEIRS: {"cache_prompt": False, "ignore_eos": True}}
"""More fields of the requests. No prompt comes twice, so nothing is gained by keeping them."""
_FIGURES = ("tokens_s", "first_p50", "first_p99", "between_mean", "gap_p50", "gap_p99", "processor_us")

Figures = dict[str, float]


@dataclass(frozen=True)
class Running:
    """A server."""

    name: str
    process: subprocess.Popen[bytes]
    port: int

    def load(self, model: str, clients: int, requests: int, prompt: int, tokens: int, seed: int) -> Figures:
        """One round."""
        command = [sys.executable, "-m", "benchmarks.http_load", f"127.0.0.1:{self.port}", "--model", model, "--json"]
        given = {"clients": clients, "requests": requests, "prompt-tokens": prompt, "tokens": tokens, "seed": seed}
        options = [f"--{name}={value}" for name, value in given.items()]
        before, cost = self._seconds(), self._cost()
        options.append(f"--extra={json.dumps(_EXTRA[self.name])}")
        done = subprocess.run([*command, *options], check=False, stdout=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(f"{self.name}: the clients failed")
        figures: Figures = json.loads(done.stdout)
        figures["processor_us"] = (self._seconds() - before) / figures["tokens"] * 1e6
        for name, value in self._cost().items():
            figures[name] = value - cost[name]
        return figures

    def _seconds(self) -> float:
        """Of the processors, so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _cost(self) -> Figures:
        """What ours tells of the device, so far."""
        if self.name != OURS:
            return {}
        wanted = {"wasmetal_batches_total": "batches", "wasmetal_batched_total": "batched"}
        wanted["wasmetal_device_seconds_total"] = "device_s"
        values = dict.fromkeys(wanted.values(), 0.0)
        for line in _get(self.port, "/metrics").decode().splitlines():
            if (name := line.partition("{")[0]) in wanted:
                values[wanted[name]] += float(line.rpartition(" ")[2])
        return values


def main(
    model: Annotated[Path, typer.Argument(help="A GGUF file.", exists=True, dir_okay=False)],
    device: Annotated[str, typer.Option(help="Of ours.")] = "cpu",
    llama_server: Annotated[Path | None, typer.Option(help="llama.cpp's; without it, ours is measured alone.")] = None,
    clients: Annotated[str, typer.Option(help="How many at once, separated by commas.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(min=1, help="With each number of clients; figures are medians.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Of each client in a round, one after another.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="Generated for each request.")] = 128,
    precision: Annotated[str, typer.Option(help="Of ours.")] = "standard",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure, and print a table or JSON."""
    numbers = [int(part) for part in clients.split(",")]
    most, context = max(numbers), prompt_tokens + tokens + 32
    commands = {OURS: _ours(model, device, precision, most, context)}
    if llama_server:
        commands[THEIRS] = _theirs(llama_server, model, most, context)
    rows: dict[int, dict[str, list[Figures]]] = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(_running(name, command)) for name, command in commands.items()]
        for server in servers:  # to warm up
            server.load(model.stem, most, 2, prompt_tokens, tokens, 0)
        seed = 0
        for number in numbers:
            rows[number] = {name: [] for name in commands}
            for _ in range(rounds):
                seed += 1
                for server in servers:
                    figures = server.load(model.stem, number, requests, prompt_tokens, tokens, seed)
                    rows[number][server.name].append(figures)
    results = {
        number: {
            name: {figure: median(each[figure] for each in some) for figure in some[0]} for name, some in each.items()
        }
        for number, each in rows.items()
    }
    if as_json:
        settings = {"device": device, "precision": precision, "rounds": rounds, "requests": requests}
        settings |= {"prompt tokens": prompt_tokens, "tokens": tokens, "model": model.name}
        json.dump({"settings": settings, "results": results, "rounds": rows}, sys.stdout, indent=1)
        print()
    else:
        _print(results)


def _print(results: dict[int, dict[str, Figures]]) -> None:
    print("clients  server        tokens/s  ratio  first p50/p99, ms  token, ms  gap p50/p99, ms  processor, µs/token")
    for number, each in results.items():
        for name, some in each.items():
            ratio = some["tokens_s"] / each[THEIRS]["tokens_s"] if THEIRS in each else float("nan")
            ms = {figure: 1e3 * value for figure, value in some.items()}
            print(
                f"{number:7}  {name:12}  {some['tokens_s']:8.0f}  {ratio:5.2f}  "
                f"{ms['first_p50']:8.1f} {ms['first_p99']:8.1f}  {ms['between_mean']:9.2f}  "
                f"{ms['gap_p50']:7.1f} {ms['gap_p99']:7.1f}  {some['processor_us']:19.0f}"
            )
        some = each[OURS]
        print(
            f"{'':9}{OURS}: {some['batches']:.0f} batches of {some['batched'] / some['batches']:.1f} completions, "
            f"{some['device_s'] * some['tokens_s'] / some['tokens']:.2f} of the time the device is at work"
        )


def _ours(model: Path, device: str, precision: str, most: int, context: int) -> list[str]:
    command = [sys.executable, "-c", "from wasmetal.cli import main; main()", "serve", str(model), "--device", device]
    return [*command, "--precision", precision, "--parallel", str(most), "--context", str(context), "--port"]


def _theirs(program: Path, model: Path, most: int, context: int) -> list[str]:
    options = f"-np {most} -cb -fa on -ngl 99 -c {most * -(-context // 256) * 256} --cache-ram 0 --host 127.0.0.1"
    return [str(program), "-m", str(model), *options.split(), "--port"]


@contextmanager
def _running(name: str, command: Sequence[str]) -> Iterator[Running]:
    """A server on a free port, whose name goes after the command, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([*command, str(port)], stdout=log, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + _LOADING
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"{name} does not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield Running(name, process, port)
        finally:
            process.terminate()


def _healthy(port: int) -> bool:
    try:
        _get(port, "/health")
    except (OSError, http.client.HTTPException):
        return False
    return True


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise http.client.HTTPException(f"status {response.status}")
        return response.read()
    finally:
        connection.close()


if __name__ == "__main__":
    typer.run(main)
