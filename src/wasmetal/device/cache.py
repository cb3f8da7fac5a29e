"""Where backends keep compiled pipelines between processes."""

from __future__ import annotations

from pathlib import Path

from wasmetal.home import home


def cache_directory() -> Path:
    """``pipelines`` in the cache folder. It need not exist yet."""
    return home() / "pipelines"
