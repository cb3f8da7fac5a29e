"""Decode many tokens, and see whether the process or the device takes more and more memory.

    python -m benchmarks.soak MODEL --device cuda --tokens 10000

Chat guests decode, one after the other, each with a session of its own. 1 if memory grows after the first fifth.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks import ours
from benchmarks.workload import PROMPT_S
from wasmetal import load_model, open_device
from wasmetal.device import Device
from wasmetal.resident import resident_bytes

_MOST = 4 << 20
"""Bytes of growth that allocators may keep."""


@dataclass
class Memory:
    """What is taken once so many tokens have been decoded, in bytes."""

    tokens: int
    host: int
    """Resident."""
    device: int | None
    """None if the device does not say."""


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--each", type=int, default=500, help="tokens of a guest; default: %(default)s")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    context = PROMPT_S + options.each + 1
    with open_device(options.device) as device, load_model(options.model, device, context=context) as model:
        used = device_memory(device)
        for tokens in range(options.each, options.tokens + 1, options.each):
            ours.decode(model, 1, options.each)
            gc.collect()
            results.append(Memory(tokens, resident_bytes(), used()))
            if not options.json:
                there = "" if results[-1].device is None else f", device {results[-1].device >> 10} KiB"
                print(f"{tokens:6} tokens: host {results[-1].host >> 10} KiB{there}", flush=True)
    if options.json:
        print(json.dumps([asdict(each) for each in results], indent=1))
    first, last = results[len(results) // 5], results[-1]
    return int(last.host - first.host > _MOST or (last.device or 0) - (first.device or 0) > _MOST)


def device_memory(device: Device) -> Callable[[], int | None]:
    """Says how many bytes of the device's memory are in use, by any process."""
    if device.info.backend != "cuda":
        return lambda: None
    from wasmetal.device.cuda.api import cu  # noqa: PLC0415

    def used() -> int:
        device.backend.context.use()  # type: ignore[attr-defined]
        _, free, total = cu.cuMemGetInfo()
        return int(total) - int(free)

    return used


if __name__ == "__main__":
    sys.exit(main())
