"""What guest authors need: the C header, a small C library, and a template for a new guest."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
INCLUDE = FOLDER / "include"
"""``wasmetal.h``, and ``wasmetal/*.h`` of the library."""
LIBRARY = FOLDER / "lib"
"""The library's sources, to be compiled with the guest."""
