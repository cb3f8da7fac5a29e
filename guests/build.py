"""Build the guests; with ``--check``, fail if a committed .wasm differs from what its source gives.

Needs the ``ziglang`` package, pinned in pyproject.toml: the same compiler gives the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

SDK = "../src/wasmetal/sdk"
LIBRARY = tuple(f"{SDK}/lib/{name}.c" for name in ("text", "sampler", "speculate"))
CHAT = ("chat/chat.c", "chat/drafting.c", *LIBRARY)
ENDPOINT = ("endpoint/endpoint.c", f"{SDK}/lib/json.c", *CHAT)
REACTOR = ("-mexec-model=reactor",)
"""Flags of guests that are actors alone."""

GUESTS: dict[str, tuple[str, ...]] = {
    "matmul": ("matmul/matmul.c",),
    "chat": ("chat/main.c", *CHAT),
    "complete": (
        *(f"complete/{name}.c" for name in ("main", "request", "reply")),
        *(f"{SDK}/lib/{name}.c" for name in ("text", "sampler")),
    ),
    "converse": (*REACTOR, "converse/converse.c", *ENDPOINT),
    "retrieve": (*REACTOR, "retrieve/retrieve.c", "retrieve/passages.c", *ENDPOINT),
    "vote": (*REACTOR, "vote/vote.c", *ENDPOINT),
    "tree": ("tree/tree.c", f"{SDK}/lib/text.c"),
    "nn_chat": ("nn_chat/nn_chat.c",),
    "attacker": ("attacker/attacker.c",),
    "sampler": ("sampler/exports.c", f"{SDK}/lib/sampler.c", f"{SDK}/lib/speculate.c"),
}
"""Sources of each guest, and flags; ``<name>.wasm`` lies beside this file."""

FLAGS = (
    "-target", "wasm32-wasi", "-mcpu=generic+simd128+bulk_memory", "-std=gnu17", "-O3", "-s",
    "-Wall", "-Wextra", "-Werror", f"-I{SDK}/include",
    "-fno-ident", "-ffile-prefix-map=.=.", "-Wl,-z,stack-size=262144",
)  # fmt: skip


def main() -> int:
    """Build all, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*GUESTS, []], metavar="NAME", help=", ".join(GUESTS))
    parser.add_argument("--check", action="store_true", help="compare with the committed files; change nothing")
    options = parser.parse_args()
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or GUESTS:
            committed, built = HERE / f"{name}.wasm", Path(folder, f"{name}.wasm")
            compile_guest(name, built)
            if not options.check:
                committed.write_bytes(built.read_bytes())
                print(f"{committed.name}: {committed.stat().st_size} bytes")
            elif not committed.exists() or committed.read_bytes() != built.read_bytes():
                stale.append(committed.name)
    if stale:
        print(f"not what their sources give: {', '.join(stale)}; run python guests/build.py", file=sys.stderr)
    return bool(stale)


def compile_guest(name: str, out: Path) -> None:
    """Compile one guest to ``out``."""
    # Relative paths only, so that no path of this machine can reach the output.
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, *GUESTS[name], "-o", str(out)]
    if subprocess.run(command, cwd=HERE, check=False).returncode:
        sys.exit(f"{name}: the compiler failed")


if __name__ == "__main__":
    sys.exit(main())
