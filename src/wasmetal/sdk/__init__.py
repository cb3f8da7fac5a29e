"""What guest authors need: the C header, a small C library, and a template for a new guest."""

from __future__ import annotations

import re
from pathlib import Path

from wasmetal.errors import WasmetalError

FOLDER = Path(__file__).parent
INCLUDE = FOLDER / "include"
"""``wasmetal.h``, and ``wasmetal/*.h`` of the library."""
LIBRARY = FOLDER / "lib"
"""The library's sources, to be compiled with the guest."""


class SdkError(WasmetalError):
    """A new guest that cannot be created."""


def create(name: str, parent: Path) -> Path:
    """Make ``parent/name``, a folder with a guest that builds and runs; return it. Raises SdkError."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise SdkError(f"{name!r} cannot be a guest's name; take letters, digits, - and _, and begin with a letter")
    folder = parent / name
    try:
        folder.mkdir(parents=True)
        for template in sorted((FOLDER / "template").iterdir()):
            text = template.read_text().replace("{{name}}", name)
            (folder / template.name.replace("guest", name)).write_text(text)
    except FileExistsError:
        raise SdkError(f"{folder} exists already; choose another name or another --dir") from None
    except OSError as error:
        raise SdkError(f"cannot create {folder}: {error.strerror}") from None
    return folder
