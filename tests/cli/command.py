"""The command as its users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.metal.devices import environment_for

SCRIPT = Path(sys.executable).with_name("wasmetal")


def wasmetal(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``wasmetal arguments…`` with more variables in its environment."""
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        errors="backslashreplace",  # random models say what is no UTF-8
        timeout=150,
        check=False,
        env=os.environ | environment_for(*arguments) | environment,
    )
