"""Functions run in a process of their own, for what would damage this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_apart(function: Callable[..., None], *args: str, timeout: float = 120) -> str:
    """Call a module's function with text arguments in a new process, which must succeed; return what it prints.

    If it has not ended after ``timeout`` seconds it is killed, and the test fails.
    """
    script = f"from {function.__module__} import {function.__name__}; {function.__name__}(*{args!r})"
    command = [sys.executable, "-X", "faulthandler", "-c", script]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout
