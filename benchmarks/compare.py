"""Our devices beside llama.cpp on models of random weights: all engines take turns in one run.

    python -m benchmarks.compare --devices cuda,vulkan --types F16,Q8_0,Q4_0 \\
        --llama-bench /path/to/llama-bench --out benchmarks/results

Each device is measured from the chat guest and from plain Python. Every measurement is a process of its own, so that no
engine keeps memory from the next. The results go to a JSON file and a chart, named by the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import chart, random_model

PROMPT, TOKENS = 512, 128
PEER = "llama.cpp"

Figures = dict[str, float]


def main() -> int:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", default="cuda,vulkan", help="of ours, separated by commas")
    parser.add_argument("--types", default="F16,Q8_0,Q4_0", help="of the weights")
    parser.add_argument("--shape", choices=random_model.SHAPES, default="1b", help="of Llama 3")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench, to be measured too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["exact", "standard", "fast"], default="standard")
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary one")
    parser.add_argument("--out", type=Path, help="folder for the results; default: they are only printed")
    parser.add_argument("--run", nargs=2, metavar=("DEVICE", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(ours(*options.run, options.precision)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        results = measure(options, options.folder or Path(temporary))
    settings = {name: getattr(options, name) for name in ("shape", "precision", "rounds")}
    settings |= {"prompt tokens": PROMPT, "decoded tokens": TOKENS}
    report = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "settings": settings, "results": results}
    show(results)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        name = f"{report['date']}-{options.shape}"
        (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.out / f"{name}.svg").write_text(
            chart.draw(f"Llama 3 {options.shape}: {report['machine']['gpu']}", results)
        )
    return 0


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Figures]]:
    """Medians over the rounds, by weight type and engine."""
    results: dict[str, dict[str, Figures]] = {}
    for kind in options.types.split(","):
        model = folder / f"{options.shape}-{kind.lower()}.gguf"
        if not model.exists():
            print(f"writing {model.name}", file=sys.stderr)
            random_model.write(model, kind, options.shape)
        runs: dict[str, list[Figures]] = {}
        for number in range(options.rounds):
            print(f"{kind}: round {number + 1} of {options.rounds}", file=sys.stderr)
            for device in options.devices.split(","):
                for engine, figures in in_process(device, model, options.precision).items():
                    runs.setdefault(f"{device} from {engine}", []).append(figures)
            if options.llama_bench:
                runs.setdefault(PEER, []).append(llama_cpp(options.llama_bench, model))
        results[kind] = {
            engine: {name: median(run[name] for run in some) for name in some[0]} for engine, some in runs.items()
        }
    return results


def in_process(device: str, model: Path, precision: str) -> dict[str, Figures]:
    """The figures of one run of this program."""
    command = [sys.executable, "-m", "benchmarks.compare", "--precision", precision, "--run", device, str(model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    figures: dict[str, Figures] = json.loads(done.stdout)
    return figures


def ours(name: str, model: str, precision: Any) -> dict[str, Figures]:
    """Speeds from the guest and from Python, and the bound that the device's bandwidth sets on decoding."""
    from wasmetal import open_device  # noqa: PLC0415 (only in the process that measures)
    from wasmetal.bench.llm import measure as bench  # noqa: PLC0415

    with open_device(name, precision) as device:
        result = bench(device, model, PROMPT, TOKENS, 1)
        return {
            speed.engine: {
                "decode": speed.decode,
                "prefill": speed.prefill,
                "share of bound": speed.decode / result.bound,
                "bytes a token": result.weight_bytes,
                "bandwidth": result.bandwidth,
            }
            for speed in result.speeds
            if speed.engine != PEER
        }


def llama_cpp(program: Path, model: Path) -> Figures:
    """What llama-bench reports, with flash attention and all layers on the GPU."""
    from wasmetal.bench.llm import llama_bench  # noqa: PLC0415

    speed = llama_bench(program, model, PROMPT, TOKENS, "-fa", 1, "-ngl", 99, "-r", 3)
    return {"prefill": speed.prefill, "decode": speed.decode}


def show(results: dict[str, dict[str, Figures]]) -> None:
    """Print a table: tokens per second, and the ratio to the peer."""
    for kind, engines in results.items():
        titles = f"{'decode':>8}  {'x peer':>6}  {'of bound':>8}  {'prefill':>11}  {'x peer':>6}"
        print(f"{kind:6}  {'engine':20}  {titles}")
        for engine, figures in engines.items():
            ratio = _ratio(engines, figures)
            share = f"{figures['share of bound']:8.2f}" if "share of bound" in figures else " " * 8
            decode, prefill = figures["decode"], figures["prefill"]
            print(
                f"{'':6}  {engine:20}  {decode:8.0f}  {ratio('decode')}  {share}  {prefill:11.0f}  {ratio('prefill')}"
            )


def _ratio(engines: dict[str, Figures], figures: Figures) -> Callable[[str], str]:
    peer = engines.get(PEER)
    return lambda name: f"{figures[name] / peer[name]:6.2f}" if peer else " " * 6


def machine() -> dict[str, str]:
    """What the figures depend on."""
    smi = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(smi, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        gpu = "no NVIDIA GPU"
    packages = dict(_versions("wasmetal", "wasmtime", "numpy", "cuda-bindings"))
    system = f"{platform.system()} {platform.machine()}"
    return {"gpu": gpu, "system": system, "python": platform.python_version()} | packages


def _versions(*names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except ModuleNotFoundError:
            continue


if __name__ == "__main__":
    sys.exit(main())
