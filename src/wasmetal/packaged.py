"""The guests that come with wasmetal: ``chat``, ``complete``, ``converse``."""

from __future__ import annotations

from pathlib import Path


def guest(name: str) -> Path:
    """The file of one of them: inside the installed package, or in ``guests/`` of a checkout."""
    package = Path(__file__).parent
    installed = package / "guests" / f"{name}.wasm"
    return installed if installed.exists() else package.parents[1] / "guests" / f"{name}.wasm"
