"""Actors on several devices: what freezing and thawing take, and whether conversations go on as if never frozen.

    python benchmarks/random_model.py 1b.gguf --context 8192
    python -m benchmarks.actor_devices 1b.gguf --device cuda --device vulkan --out results.json

For each device, the table of ``wasmetal bench actor``, with the bandwidth at which the device copies from memory that
it shares with the host: no thawing can be faster. Then random conversations that are frozen after every message and
thawed by a new process, on each device, and from one device to the next, the CPU device among them: see
tests/actor/moves.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from tests.actor import moves
from wasmetal import open_device, processor
from wasmetal.bench import actor
from wasmetal.device.backend import Range
from wasmetal.device.base import MemoryKind
from wasmetal.device.opened import OpenDevice

COPIED = 64 << 20
"""Bytes of the copy that tells a device's bandwidth."""
LINES = (
    ("prefill to the first token", "prefill"),
    ("freeze", "freeze"),
    ("freeze, one message later", "freeze_later"),
    ("freeze to the disk", "save"),
    ("freeze to the disk, one message later", "save_later"),
    ("thaw", "thaw"),
    ("thaw to the first token", "thaw_first_token"),
    ("thaw from a store", "load"),
    ("thaw from a store to the first token", "load_first_token"),
    ("the same message, awake", "awake_first_token"),
    ("fork", "fork"),
)


def copies_per_second(device: OpenDevice) -> float:
    """Bytes per second from memory that the host and the device see to the device's own."""
    backend = device.backend
    source, target = (Range(backend.allocate(COPIED, kind), 0, COPIED) for kind in MemoryKind)
    if target.allocation.address is not None:
        return 0.0
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        backend.copy(source, target)
        times.append(time.perf_counter() - begun)
    return COPIED / median(times)


def measured(spec: str, model: str, tokens: list[int], repeats: int) -> dict[str, Any]:
    """The rows of one device."""
    with open_device(spec) as device:
        assert isinstance(device, OpenDevice)
        rows = actor.measure(device, model, tokens, repeats)
        return {
            "device": device.info.name,
            "driver": device.info.driver,
            "copies_bytes_per_second": copies_per_second(device),
            "rows": list(map(asdict, rows)),
        }


def conversations(count: int, devices: list[str], model: str, **settings: Any) -> dict[str, Any]:
    """What :func:`tests.actor.moves.run` finds."""
    begun = time.monotonic()
    messages, differences = moves.run(count, devices, model, raw=True, **settings)
    first = [asdict(found) | {"got": found.got.hex(), "expected": found.expected.hex()} for found in differences]
    seconds = round(time.monotonic() - begun)
    return {"devices": devices, "conversations": count, "messages": messages, "differ": first, "seconds": seconds}


def table(results: dict[str, Any]) -> str:
    """The results as text. Times are in ms."""
    lines = []
    for spec, found in results["devices"].items():
        rows = found["rows"]
        lines += ["", f"{spec}: {found['device']}", _line("tokens", [str(row["tokens"]) for row in rows])]
        lines.append(_line("bytes, MB", [f"{row['nbytes'] / 1e6:.1f}" for row in rows]))
        lines.append(_line("bytes, new one message later, MB", [f"{row['later_nbytes'] / 1e6:.1f}" for row in rows]))
        lines += [_line(name, [f"{1e3 * row[field]:.2f}" for row in rows]) for name, field in LINES]
        lines.append(_line("prefill, times a thaw", [f"{row['prefill'] / row['thaw']:.1f}" for row in rows]))
        lines.append(_line("thaw from a store, GB/s", [f"{row['nbytes'] / row['load'] / 1e9:.1f}" for row in rows]))
        if limit := found["copies_bytes_per_second"]:
            lines.append(_line("copies to the device, GB/s", [f"{limit / 1e9:.1f}"]))
    lines.append("")
    for found in results["conversations"]:
        differ = found["differ"]
        first = [f"{each['message'] + 1}.{each['token'] + 1}" for each in differ]
        said = f"{len(differ)} differ" + (f", first at message.token {', '.join(first)}" if differ else "")
        counts = f"{found['conversations']} conversations, {found['messages']} messages"
        lines.append(f"{' → '.join(found['devices'])}: {counts}, {said} ({found['seconds']} s)")
    return "\n".join(lines)


def _line(name: str, values: list[str]) -> str:
    return f"{name:40}" + "".join(f"{value:>12}" for value in values)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform(), "processor": processor.name()}
    for package in ("wasmetal", "wasmtime", "cuda-bindings", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", action="append", required=True)
    parser.add_argument("--tokens", type=int, action="append", help="[default: 24, 512 and 4096]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=100, help="on each device")
    parser.add_argument("--crossing", type=int, default=10, help="conversations from one device to the next")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "date": date.today().isoformat(),
        "model": Path(options.model).name,
        "versions": _versions(),
        "devices": {},
        "conversations": [],
    }

    def report() -> None:
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")

    for spec in options.device:
        results["devices"][spec] = measured(spec, options.model, options.tokens or [*actor.TOKENS], options.repeats)
        report()
    runs = [(options.conversations, [spec], {}) for spec in options.device]
    runs.append((options.crossing, ["cpu", *options.device], {"greedy": True, "kv_type": "f16"}))
    for count, devices, settings in runs:
        if count:
            results["conversations"].append(conversations(count, devices, options.model, **settings))
            report()
    print(table(results))


if __name__ == "__main__":
    main()
