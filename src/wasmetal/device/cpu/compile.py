"""Compile the CPU device's kernels into ``generated/``; with ``--check``, fail if a committed library is not current.

    python -m wasmetal.device.cpu.compile

Needs the ``ziglang`` package, pinned in pyproject.toml: the same compiler gives the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from wasmetal.kernels.catalog import CATALOG, Kernel

HERE = Path(__file__).parent
SOURCES = ("linear.c", "experts.c", "rows.c", "top_logits.c", "next_token.c", "attention.c", "copies.c", "run.c")
TARGETS = {
    "x86_64_v3.so": ("x86_64-linux-gnu.2.17", "x86_64_v3"),
    "x86_64_v4.so": ("x86_64-linux-gnu.2.17", "x86_64_v4+avx512vnni"),
    "aarch64.so": ("aarch64-linux-gnu.2.17", "generic+dotprod+fullfp16"),
    "arm64.dylib": ("aarch64-macos.13.0", "apple_m1"),
}
"""Libraries: (the compiler's target, the processor whose instructions may be used)."""
FLAGS = (
    *("-std=gnu17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *(
        "-Wall",
        "-Wextra",
        "-Wno-missing-field-initializers",
        "-Werror",
        "-fvisibility=hidden",
        "-shared",
        "-fPIC",
        "-s",
        "-fno-ident",
        "-lpthread",
    ),
)


def main() -> int:
    """Compile all libraries."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed libraries; change nothing")
    options = parser.parse_args()
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        for name in TARGETS:
            built, committed = Path(folder, name), HERE / "generated" / name
            compile_library(name, built)
            if not options.check:
                committed.parent.mkdir(exist_ok=True)
                committed.write_bytes(built.read_bytes())
                print(f"{name}: {committed.stat().st_size} bytes")
            elif not committed.exists() or committed.read_bytes() != built.read_bytes():
                stale.append(name)
    if stale:
        print(f"not what the sources give: {', '.join(stale)}; run python -m {__spec__.name}", file=sys.stderr)
    return bool(stale)


def compile_library(name: str, out: Path, *flags: str) -> None:
    """Compile one of TARGETS to ``out``, with further flags."""
    target, processor = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "params.h").write_text(params_header())
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, f"-mcpu={processor}", *FLAGS, *flags]
        # Relative paths only, so that no path of this machine can reach the output.
        if name.endswith(".dylib"):
            command += [f"-Wl,-install_name,@rpath/{name}"]
        command += [f"-I{folder}", f"-ffile-prefix-map={folder}=.", *SOURCES, "-o", str(out)]
        if subprocess.run(command, cwd=HERE / "native", check=False).returncode:
            sys.exit(f"{name}: the compiler failed")


def params_header() -> str:
    """A C struct of parameters for each family of kernels that differ in their element types only."""
    types = {"u32": "uint32_t", "f32": "float"}
    families: dict[str, Kernel] = {}
    for kernel in CATALOG.values():
        families.setdefault(re.sub(r"(_(simdgroup|[a-z]*\d+\w*))+$", "", kernel.name), kernel)
    return "".join(
        f"struct {family}_params {{ " + " ".join(f"{types[kind]} {field};" for field, kind in kernel.params) + " };\n"
        for family, kernel in families.items()
    )


if __name__ == "__main__":
    sys.exit(main())
