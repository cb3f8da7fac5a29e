"""A tiny model split into several files by the ``gguf`` package."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf

from tests.models.tiny import write_tiny_llama


def write_split_llama(path: Path, tensors: int = 8, **options: Any) -> list[Path]:
    """The files, with up to so many tensors in each."""
    writer = partial(gguf.GGUFWriter, split_max_tensors=tensors, small_first_shard=options.pop("small_first", False))
    with patch.object(gguf, "GGUFWriter", writer):
        write_tiny_llama(path, **options)
    return sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))
