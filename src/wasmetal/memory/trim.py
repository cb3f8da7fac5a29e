"""Freed memory, given back to the system."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)


def trim() -> None:
    """Give back what the C library keeps of memory that was freed (glibc's ``malloc_trim``; nothing elsewhere).

    Worth its milliseconds after much was allocated and freed, such as a vocabulary while a model is loaded.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))
