"""Running a piece of Python in a process of its own, to see how much memory it takes."""

from __future__ import annotations

import subprocess
import sys

MIB = 1 << 20
_HEAD = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
path = Path(sys.argv[1])
"""
_TAIL = """
before = peak()
try: print(f"{run()}")
except WasmetalError as error: print(f"{type(error).__name__}: {error}")
print(peak() - before)
"""


def run(prepare: str, argument: str = "") -> tuple[str, int]:
    """What ``run()``, which ``prepare`` defines, returns or raises as text, and the bytes by which memory grew."""
    script = _HEAD + "from wasmetal.errors import WasmetalError\n" + prepare + _TAIL
    command = [sys.executable, "-c", script, argument, *sys.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    *said, grown = done.stdout.splitlines()
    return "\n".join(said), int(grown)
