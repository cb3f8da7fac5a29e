"""The cache folder: models, compiled pipelines and programs, and the history of chats."""

import os
from pathlib import Path


def home() -> Path:
    """WASMETAL_HOME, else ``wasmetal`` under XDG_CACHE_HOME, else ``~/.cache/wasmetal``. It need not exist yet."""
    if own := os.environ.get("WASMETAL_HOME"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wasmetal"


def pipelines_directory() -> Path:
    """The folder of compiled pipelines. It need not exist yet."""
    return home() / "pipelines"
