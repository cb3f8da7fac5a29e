"""Compile the CPU device's kernels into ``generated/``; with ``--check``, fail if a committed library is not current.

    python -m wasmetal.device.cpu.compile

Needs the ``ziglang`` package, as :mod:`wasmetal.shared_libraries` says.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from wasmetal import shared_libraries
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
    *("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    "-Wno-missing-field-initializers",
)


def main() -> int:
    """Compile all libraries."""
    return shared_libraries.main(__spec__.name, __doc__ or "", TARGETS, compile_library, HERE / "generated")


def compile_library(name: str, out: Path, *flags: str) -> None:
    """Compile one of TARGETS to ``out``, with further flags."""
    target, processor = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "params.h").write_text(params_header())
        paths = (f"-I{folder}", f"-ffile-prefix-map={folder}=.")
        arguments = (f"-mcpu={processor}", *FLAGS, *flags, *paths, *SOURCES)
        shared_libraries.compile_library(name, out, target, HERE / "native", *arguments)


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
