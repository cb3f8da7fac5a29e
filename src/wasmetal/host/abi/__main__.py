"""Writes the files that are generated from the description of the guest ABI; with ``--check``, compares them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wasmetal import sdk
from wasmetal.host.abi import DESCRIPTION
from wasmetal.host.abi.header import header, nn_header
from wasmetal.host.abi.nn import NN
from wasmetal.host.abi.witx import NN_NOTES, witx


def generate() -> dict[Path, str]:
    """The text of every generated file, by its path in the SDK's folder."""
    files = {
        Path("include", "wasmetal.h"): header(DESCRIPTION),
        Path("include", "wasi_nn.h"): nn_header(NN),
        Path("witx", f"{NN.name}.witx"): witx(NN, DESCRIPTION[0], NN_NOTES),
    }
    for interface in DESCRIPTION:
        files[Path("witx", f"{interface.name}.witx")] = witx(interface, DESCRIPTION[0])
    return files


def main(folder: Path = sdk.FOLDER) -> int:
    """The command line. Exit code 1 if a file is not current."""
    parser = argparse.ArgumentParser(prog="python -m wasmetal.host.abi", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed file differs")
    check = parser.parse_args().check
    files = generate()
    if not check:
        for path, text in files.items():
            (folder / path).write_text(text)
        print(f"{len(files)} files in {folder}")
        return 0
    stale = [path for path, text in files.items() if (folder / path).read_text() != text]
    for path in stale:
        print(f"sdk/{path} is not current; run make abi", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
