"""The results of ``benchmarks.compare``: shares, ratios, the table, and the files."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import chart
from benchmarks.workload import BANDWIDTH, BYTES, DECODE, FIRST, PREFILL, SHARE, Figures, together
from wasmetal import processor

Results = dict[str, dict[str, Figures]]
"""By type of weights, and engine."""

OURS = " from "
"""In the names of our engines: a device, and what drives it."""
HOST = ("cpu", "reference")
"""Devices of ours whose memory is the host's; that of the others is the GPU's."""


def add_shares(results: Results) -> None:
    """Add what share of the memory's bandwidth each engine's weights take while it decodes.

    The bandwidth is the largest that one of our devices measured of the same memory; other engines use the GPU's if it
    was measured.
    """
    for engines in results.values():
        measured: dict[bool, float] = {}
        for engine, figures in engines.items():
            if BANDWIDTH in figures:
                host = _on_host(engine)
                measured[host] = max(measured.get(host, 0.0), figures[BANDWIDTH])
        for engine, figures in engines.items():
            host = _on_host(engine) if OURS in engine else False not in measured
            if host in measured and BYTES in figures and DECODE in figures:
                figures[SHARE] = figures[DECODE] * figures[BYTES] / measured[host]


def ratios(results: Results) -> dict[str, dict[str, dict[str, Figures]]]:
    """By type, engine of ours, and peer: each figure that both have, ours over the peer's."""
    return {
        kind: {
            engine: {
                peer: {name: ours[name] / theirs[name] for name in ours if name in theirs and name != BYTES}
                for peer, theirs in engines.items()
                if OURS not in peer
            }
            for engine, ours in engines.items()
            if OURS in engine
        }
        for kind, engines in results.items()
    }


def table(report: dict[str, Any]) -> str:
    """For people: speeds in tokens a second, and below, in how many times each peer's."""
    sessions = report["settings"]["sessions"]
    columns = {DECODE: (1, ".0f"), "GB a token": (1e-9, ".3f"), SHARE: (1, ".2f"), "first token, ms": (1e3, ".1f")}
    columns |= {PREFILL: (1, ".0f")} | {together(number): (1, ".0f") for number in sessions}
    names = {"GB a token": BYTES, "first token, ms": FIRST}
    lines: list[str] = []
    for kind, engines in report["results"].items():
        lines.append(f"{kind:26}" + "".join(f"  {title:>{len(title)}}" for title in columns))
        for engine, figures in engines.items():
            cells = ""
            for title, (scale, form) in columns.items():
                value = figures.get(names.get(title, title))
                cells += f"  {'' if value is None else format(value * scale, form):>{len(title)}}"
            lines.append(f"  {engine:24}{cells}".rstrip())
        for engine, peers in report["ratios"][kind].items():
            for peer, figures in peers.items():
                some = ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if name != SHARE)
                lines.append(f"  {engine} / {peer}: {some}")
        lines.append("")
    return "\n".join(lines)


def write(report: dict[str, Any], folder: Path) -> None:
    """Write the report, a chart of one sequence alone and, if there were some, one of many at once."""
    folder.mkdir(parents=True, exist_ok=True)
    results, settings, machine = report["results"], report["settings"], report["machine"]
    path = folder / f"{report['date']}-{settings['shape']}"
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    title = f"Llama 3 {settings['shape']}, decoded tokens per second, {{}}: {machine['gpu'] or machine['processor']}"
    alone = {kind: _values(engines, DECODE) for kind, engines in results.items()}
    path.with_suffix(".svg").write_text(chart.draw(title.format("batch 1"), alone))
    if settings["sessions"]:
        many = {
            f"{kind}, {number}": _values(engines, together(number))
            for kind, engines in results.items()
            for number in settings["sessions"]
        }
        path.with_name(f"{path.name}-sessions.svg").write_text(chart.draw(title.format("many at once"), many))


def machine() -> dict[str, str]:
    """What the figures depend on. ``gpu`` is empty without one of NVIDIA's."""
    smi = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(smi, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        gpu = ""
    packages = dict(_versions("wasmetal", "wasmtime", "numpy", "cuda-bindings"))
    system = f"{platform.system()} {platform.machine()}"
    return {
        "gpu": gpu,
        "processor": processor.name(),
        "system": system,
        "python": platform.python_version(),
    } | packages


def _values(engines: dict[str, Figures], name: str) -> dict[str, float]:
    return {engine: figures[name] for engine, figures in engines.items() if name in figures}


def _on_host(engine: str) -> bool:
    return engine.partition(OURS)[0].partition(":")[0] in HOST


def _versions(*names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
