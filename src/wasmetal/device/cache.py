"""Where backends keep compiled pipelines between processes."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """``pipelines`` in ``WASMETAL_HOME``, by default ``~/.cache/wasmetal``. It need not exist yet."""
    home = os.environ.get("WASMETAL_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "wasmetal") / "pipelines"
