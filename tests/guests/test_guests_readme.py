"""The example of guests/README.md, compiled and run as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wasmetal import Guest
from wasmetal.sdk import INCLUDE

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)  # the first time, the compiler builds the C library too
def test_the_example(tmp_path: Path) -> None:
    text = (ROOT / "guests" / "README.md").read_text()
    (code,) = re.findall(r"```c\n(.*?)```", text, re.S)
    (line,) = re.findall(r"^python -m (ziglang .*)$", text, re.M)
    (tmp_path / "double.c").write_text(code)
    arguments = line.replace('"$(wasmetal sdk include-dir)"', str(INCLUDE)).split()
    subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, check=True)
    with Guest(tmp_path / "double.wasm", device="cpu") as guest:
        assert guest.run() == 0
    assert (guest.counters.dispatches, guest.counters.bytes_copied) == (1, 0)
