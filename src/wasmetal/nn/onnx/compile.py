"""Compile the allocator into ``generated/``; with ``--check``, fail if a committed library is not current.

    python -m wasmetal.nn.onnx.compile

Needs the ``ziglang`` package, as :mod:`wasmetal.device.cpu.compile` does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = {
    "x86_64.so": "x86_64-linux-gnu.2.17",
    "aarch64.so": "aarch64-linux-gnu.2.17",
    "arm64.dylib": "aarch64-macos.13.0",
}
"""Libraries, and the compiler's targets."""
FLAGS = (
    # An exception of ONNX Runtime's passes through.
    *("-std=gnu17", "-O2", "-fexceptions", "-Wall", "-Wextra", "-Wno-deprecated-non-prototype", "-Werror"),
    *("-fvisibility=hidden", "-shared", "-fPIC", "-s", "-fno-ident", "-lpthread"),
)


def main() -> int:
    """Compile all libraries."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed libraries; change nothing")
    options = parser.parse_args()
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        for name, target in TARGETS.items():
            built, committed = Path(folder, name), HERE / "generated" / name
            # Relative paths only, so that no path of this machine can reach the output.
            command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *FLAGS]
            if name.endswith(".dylib"):
                command.append(f"-Wl,-install_name,@rpath/{name}")
            command += ["memory.c", "-o", str(built)]
            if subprocess.run(command, cwd=HERE / "native", check=False).returncode:
                sys.exit(f"{name}: the compiler failed")
            if not options.check:
                committed.write_bytes(built.read_bytes())
                print(f"{name}: {committed.stat().st_size} bytes")
            elif not committed.exists() or committed.read_bytes() != built.read_bytes():
                stale.append(name)
    if stale:
        print(f"not what the sources give: {', '.join(stale)}; run python -m {__spec__.name}", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
