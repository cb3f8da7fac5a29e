"""Fuzz a target, or all of them in turn. The exit status is 1 if something was found."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from random import SystemRandom

from tests.fuzz.driver import Result, fuzz, replay
from tests.fuzz.target import NAMES

_PROGRESS = 10.0
"""Seconds between two lines of progress."""


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*NAMES, "all"], help="what to fuzz")
    parser.add_argument("--minutes", type=float, default=1.0, help="in all; divided among the targets (default: 1)")
    parser.add_argument("--seed", type=int, help="of the random inputs (default: another one each time)")
    parser.add_argument("--device", default="cpu", help="cpu (default), vulkan or metal")
    parser.add_argument("--found", type=Path, default=Path("build/fuzz"), help="folder for findings (build/fuzz)")
    parser.add_argument("--json", action="store_true", help="the results as JSON on standard output")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="run these inputs instead")
    options = parser.parse_args()
    if options.replay and options.target == "all":
        parser.error("--replay takes the cases of one target")
    seed = SystemRandom().getrandbits(32) if options.seed is None else options.seed
    names = NAMES if options.target == "all" else [options.target]
    results = []
    for name in names:
        if options.replay:
            result = replay(name, options.device, options.replay)
        else:
            print(f"{name} on {options.device}, seed {seed}", file=sys.stderr, flush=True)
            result = fuzz(name, options.device, 60 * options.minutes / len(names), seed, _Progress())
        results.append(result)
        print(result.line(), file=sys.stderr, flush=True)
        for finding in result.examples:
            where = finding.source if options.replay else finding.save(options.found)
            print(
                f"FOUND ({result.found[finding.kind()]} times) {finding.what}\n  {where}", file=sys.stderr, flush=True
            )
    if options.json:
        print(json.dumps({"seed": seed, "results": [_as_dict(result) for result in results]}, indent=1))
    return int(any(result.found for result in results))


class _Progress:
    """Prints a line now and then."""

    def __init__(self) -> None:
        self._printed = time.monotonic()

    def __call__(self, result: Result) -> None:
        if time.monotonic() - self._printed >= _PROGRESS:
            self._printed = time.monotonic()
            print(" ", result.line(), file=sys.stderr, flush=True)


def _as_dict(result: Result) -> dict[str, object]:
    examples = [{"what": each.what, "source": each.source} for each in result.examples]
    return {**vars(result), "examples": examples}


if __name__ == "__main__":
    sys.exit(main())
