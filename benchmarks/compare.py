"""Our devices beside other engines on models of random weights: all engines take turns in one run.

    python -m benchmarks.compare --devices cuda,vulkan --types F16,Q8_0,Q4_0 --sessions 16,64 \\
        --llama-bench /path/to/llama-bench --llama-batched-bench /path/to/llama-batched-bench \\
        --transformers --vllm --out benchmarks/results

Each device is measured from the chat guest and from plain Python. Every measurement is a process of its own, so that no
engine keeps memory from the next. The results go to a JSON file and charts, named by the date. An engine that cannot be
measured is left out, with a line that says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ours, peers, random_model, report
from benchmarks.workload import PROMPT, PROMPT_S, TOKENS, TOKENS_S, Figures, Measured, NotMeasuredError, units

Run = Callable[[], Measured]


def main() -> int:
    """Measure, print a table or JSON, and write the results. 1 if one of our devices could not be measured."""
    options = _options()
    results: report.Results = {}
    about: dict[str, str] = {}
    missing: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in options.types:
            missing[kind] = {}
            results[kind] = measure(options, kind, options.folder or Path(temporary), about, missing[kind])
            written = _report(options, results, about, missing)
            if options.out:  # after each type, for a run that does not come to its end
                report.write(written, options.out)
    print(json.dumps(written, indent=1) if options.json else report.table(written))
    return int(any(name.partition(",")[0] in options.devices for some in missing.values() for name in some))


def measure(
    options: argparse.Namespace, kind: str, folder: Path, about: dict[str, str], missing: dict[str, str]
) -> dict[str, Figures]:
    """Medians over the rounds, by engine, of models of this type. What is missing is not tried again for this type."""
    model = folder / f"{options.shape}-{kind.lower()}.gguf"
    if not model.exists():
        print(f"writing {model.name}", file=sys.stderr)
        random_model.write(model, kind, options.shape)
    values: dict[str, dict[str, list[float]]] = {}
    for number in range(options.rounds):
        print(f"{kind}: round {number + 1} of {options.rounds}", file=sys.stderr)
        for name, run in runs(options, kind, model, number == 0):
            if name in missing:
                continue
            try:
                measured = run()
            except NotMeasuredError as error:
                missing[name] = str(error)
                print(f"left out: {name}: {error}", file=sys.stderr)
                continue
            about |= measured.about
            for engine, figures in measured.figures.items():
                for figure, value in figures.items():
                    values.setdefault(engine, {}).setdefault(figure, []).append(value)
    return {engine: {name: median(each) for name, each in some.items()} for engine, some in values.items()}


def runs(options: argparse.Namespace, kind: str, model: Path, first: bool) -> Iterator[tuple[str, Run]]:
    """What a round, perhaps the first, measures: names, by which it is left out, and the measurements."""
    shape, bench, batched = options.shape, options.llama_bench, options.llama_batched_bench
    for device in options.devices:
        yield device, lambda d=device: ours.measure(d, model, options.precision)
        for number in options.sessions:
            yield f"{device}, {number}", lambda d=device, n=number: ours.measure(d, model, options.precision, n)
    if bench:
        yield "llama-bench", lambda: peers.llama_bench(bench, model, shape, kind)
    if batched:
        for number in options.sessions:
            yield f"llama-batched-bench, {number}", lambda n=number: peers.llama_batched_bench(batched, model, n)
    if kind == "F16" and first:  # the frameworks have no other of these types; they take long to start
        for name in peers.FRAMEWORKS:
            if python := getattr(options, name):
                yield name, lambda n=name, p=python: peers.framework(n, p, shape, options.sessions)


def _report(
    options: argparse.Namespace, results: report.Results, about: dict[str, str], missing: dict[str, dict[str, str]]
) -> dict[str, Any]:
    settings = {name: getattr(options, name) for name in ("shape", "precision", "rounds", "sessions")}
    settings |= {"prompt tokens": PROMPT, "decoded tokens": TOKENS}
    settings |= {"prompt tokens of each session": PROMPT_S, "decoded tokens of each session": TOKENS_S}
    report.add_shares(results)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": report.machine() | about,
        "settings": settings,
        "units": units(options.sessions),
        "results": results,
        "ratios": report.ratios(results),
        "left out": missing,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=_names, default="cuda,vulkan", help="of ours, separated by commas")
    parser.add_argument("--types", type=_names, default="F16,Q8_0,Q4_0", help="of the weights")
    parser.add_argument("--shape", choices=random_model.SHAPES, default="1b", help="of Llama 3; tiny: to try it out")
    parser.add_argument("--sessions", type=_numbers, default="", help="so many guests at once, too: such as 16,64")
    parser.add_argument("--llama-bench", type=Path, metavar="PATH", help="llama.cpp's llama-bench, for one sequence")
    parser.add_argument("--llama-batched-bench", type=Path, metavar="PATH", help="llama.cpp's, for --sessions")
    for name in peers.FRAMEWORKS:
        parser.add_argument(
            f"--{name}", nargs="?", const=sys.executable, metavar="PYTHON", help=f"{name}, of this Python or another"
        )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["exact", "standard", "fast"], default="standard")
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary one")
    parser.add_argument("--out", type=Path, help="folder for the results; default: they are only printed")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [int(name) for name in _names(text)]


if __name__ == "__main__":
    sys.exit(main())
