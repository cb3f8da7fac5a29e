"""The same tests with pages of 16 KiB, as on Apple silicon, on a machine with smaller ones."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SIZE = 1 << 14
MEMORY = "memory/test_creator.py", "memory/test_region.py", "metal/test_metal_memory.py"
"""What allocates pages and lends them. Not those of mapped files, which the system maps at multiples of its own."""
OTHERS = (
    "device/test_protocol.py",
    "metal/test_metal_queue.py",
    "metal/test_metal_residency.py",
    "metal/test_standin.py",
)
"""What uses those pages."""


@pytest.mark.slow
@pytest.mark.timeout(600)  # a suite in one test
@pytest.mark.skipif(mmap.PAGESIZE >= SIZE, reason="this machine's pages are as large")
@pytest.mark.parametrize("files", [MEMORY, OTHERS], ids=["memory", "what uses it"])
def test_with_pages_of_16_kib(files: tuple[str, ...]) -> None:
    chosen = [
        "-m",
        "not slow",
        "-k",
        "not vulkan and not page_size_is_the_systems",
        *(str(TESTS / file) for file in files),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen],
        env=os.environ | {"WASMETAL_TEST_PAGE_SIZE": str(SIZE)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"emulated Metal: [0-9]+ passed, 0 failed", done.stdout), done.stdout
