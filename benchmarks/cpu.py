"""The CPU device beside llama.cpp: prefill, decode, memory and time to the first token of one model, runs interleaved.

    python -m benchmarks.cpu --llama-bench /path/to/llama-bench --rounds 5

Each run is a process of its own. With ``--busy``, all is measured again while another process keeps one core busy;
llama.cpp is left out then, whose threads wait for each other without sleeping: 16 tokens took more than 50 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

PREFILL, DECODE = 128, 64
ENGINES = ("exact", "fast")


def main() -> int:
    """Run all engines in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2:135m", help="one that `wasmetal models` lists, or a GGUF file")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench, to be measured too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="measure again while another process uses one core")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: one for each core")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.model, options.run)))
        return 0
    results: dict[str, dict[str, dict[str, float]]] = {"idle": measure(options)}
    if options.busy:
        core = str(min(os.sched_getaffinity(0)))
        spinning = subprocess.Popen(["taskset", "-c", core, sys.executable, "-c", "while True: pass"])
        try:
            results["one core busy"] = measure(options, busy=True)
        finally:
            spinning.kill()
            spinning.wait()
    if options.json:
        print(json.dumps(results))
        return 0
    for title, engines in results.items():
        print(f"{title}: {options.model}, {options.threads} threads, medians of {options.rounds} runs")
        for engine, figures in engines.items():
            print(f"  {engine:10}", "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return 0


def measure(options: argparse.Namespace, busy: bool = False) -> dict[str, dict[str, float]]:
    """Medians of each engine's figures. The engines take turns, so that all meet the same disturbances."""
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for engine in ENGINES:
            runs.setdefault(engine, []).append(in_process(options, engine))
        if options.llama_bench and not busy:
            runs.setdefault("llama.cpp", []).append(llama_cpp(options))
    return {engine: {name: median(run[name] for run in some) for name in some[0]} for engine, some in runs.items()}


def in_process(options: argparse.Namespace, engine: str) -> dict[str, float]:
    """The figures of one run of this program."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--model", options.model, "--run", engine]
    environment = os.environ | {"WASMETAL_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def run(source: str, precision: str) -> dict[str, float]:
    """Load the model, prefill and decode."""
    from wasmetal import load_model, open_device  # noqa: PLC0415 (only in the process that measures)

    chosen: Any = precision
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    with open_device("cpu", chosen) as device, load_model(source, device) as model:
        logits = model.logits()
        tokens = [5 + 37 * i % (model.vocab_size - 5) for i in range(PREFILL)]
        with model.session() as session:
            session.forward([tokens[0]], logits)
            first = time.perf_counter() - begin
        with model.session() as session:
            begin = time.perf_counter()
            session.forward(tokens, logits)
            prefill = time.perf_counter() - begin
        with model.session() as session:
            session.forward([tokens[0]], logits)
            begin = time.perf_counter()
            for token in tokens[:DECODE]:
                session.forward([token], logits)
            decode = time.perf_counter() - begin
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        f"prefill {PREFILL} (tokens/s)": PREFILL / prefill,
        "decode (tokens/s)": DECODE / decode,
        "first token (s)": first,
        "resident (MiB)": resident / 1024,
        "of that, before loading": before / 1024,
    }


def llama_cpp(options: argparse.Namespace) -> dict[str, float]:
    """What llama-bench reports for the same file."""
    from wasmetal.bench.llm import llama_bench  # noqa: PLC0415
    from wasmetal.models.files import store  # noqa: PLC0415

    path = store.resolve(options.model)
    speed = llama_bench(options.llama_bench, path, PREFILL, DECODE, "-t", options.threads, "-r", 1)
    return {f"prefill {PREFILL} (tokens/s)": speed.prefill, "decode (tokens/s)": speed.decode}


if __name__ == "__main__":
    sys.exit(main())
