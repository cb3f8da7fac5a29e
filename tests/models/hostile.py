"""What reading a file that was tampered with may do."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from wasmetal.errors import ModelError


@contextmanager
def reading(most: int) -> Iterator[None]:
    """A block that may raise ModelError, of one line, and allocates less than ``most`` bytes at a time."""
    tracemalloc.start()
    message = ""
    try:
        yield
    except ModelError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in message
    assert peak < most
