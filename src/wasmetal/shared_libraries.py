"""Compiling the shared libraries that are committed, and checking that they are current.

Needs the ``ziglang`` package, pinned in pyproject.toml: the same compiler gives the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

FLAGS = (
    *("-std=gnu17", "-Wall", "-Wextra", "-Werror"),
    *("-fvisibility=hidden", "-shared", "-fPIC", "-s", "-fno-ident", "-lpthread"),
)


def main(module: str, about: str, names: Iterable[str], compile_one: Callable[[str, Path], None], folder: Path) -> int:
    """The command line of ``module``: compile the libraries into ``folder`` or, with ``--check``, compare.

    ``compile_one`` compiles the library of a name to a file. Returns 1 if a committed library is not current.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed libraries; change nothing")
    options = parser.parse_args()
    stale = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            built, committed = Path(scratch, name), folder / name
            compile_one(name, built)
            if not options.check:
                committed.parent.mkdir(exist_ok=True)
                committed.write_bytes(built.read_bytes())
                print(f"{name}: {committed.stat().st_size} bytes")
            elif not committed.exists() or committed.read_bytes() != built.read_bytes():
                stale.append(name)
    if stale:
        print(f"not what the sources give: {', '.join(stale)}; run python -m {module}", file=sys.stderr)
    return bool(stale)


def compile_library(name: str, out: Path, target: str, folder: Path, *arguments: str) -> None:
    """Compile C to ``out``, for one of the compiler's targets.

    ``arguments``: flags beside FLAGS, and sources relative to ``folder``, so that no path of this machine can reach the
    output. ``name`` is what a library for macOS is called in itself. Exits if the compiler fails.
    """
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *FLAGS]
    if name.endswith(".dylib"):
        command.append(f"-Wl,-install_name,@rpath/{name}")
    if subprocess.run([*command, *arguments, "-o", str(out)], cwd=folder, check=False).returncode:
        sys.exit(f"{name}: the compiler failed")
