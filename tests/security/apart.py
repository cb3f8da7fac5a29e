"""Functions run in a process of their own, for what would damage this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_apart(function: Callable[..., None], *args: str, timeout: float = 120) -> str:
    """Call a module's function with text arguments in a new process, which must succeed; return what it prints.

    If it has not ended after ``timeout`` seconds it is killed, and the test fails.
    """
    ran = subprocess.run(
        _command(function, args), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


@contextmanager
def started_apart(function: Callable[..., None], *args: str) -> Iterator[Callable[[str], str]]:
    """Start it, and yield a function that writes a line to its standard input, if not empty, and returns its next one.

    It is killed at the end.
    """

    def ask(line: str) -> str:
        assert process.stdin
        assert process.stdout
        if line:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        return process.stdout.readline().rstrip()

    command = _command(function, args)
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield ask
        finally:
            process.kill()


def _command(function: Callable[..., None], args: tuple[str, ...]) -> list[str]:
    script = f"from {function.__module__} import {function.__name__}; {function.__name__}(*{args!r})"
    return [sys.executable, "-X", "faulthandler", "-c", script]
