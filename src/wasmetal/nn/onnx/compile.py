"""Compile the allocator into ``generated/``; with ``--check``, fail if a committed library is not current.

    python -m wasmetal.nn.onnx.compile

Needs the ``ziglang`` package, as :mod:`wasmetal.shared_libraries` says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from wasmetal import shared_libraries

HERE = Path(__file__).parent
TARGETS = {
    "x86_64.so": "x86_64-linux-gnu.2.17",
    "aarch64.so": "aarch64-linux-gnu.2.17",
    "arm64.dylib": "aarch64-macos.13.0",
}
"""Libraries, and the compiler's targets."""
# An exception of ONNX Runtime's passes through.
FLAGS = ("-O2", "-fexceptions", "-Wno-deprecated-non-prototype")


def main() -> int:
    """Compile all libraries."""
    return shared_libraries.main(__spec__.name, __doc__ or "", TARGETS, compile_library, HERE / "generated")


def compile_library(name: str, out: Path) -> None:
    """Compile one of TARGETS to ``out``."""
    shared_libraries.compile_library(name, out, TARGETS[name], HERE / "native", *FLAGS, "memory.c")


if __name__ == "__main__":
    sys.exit(main())
