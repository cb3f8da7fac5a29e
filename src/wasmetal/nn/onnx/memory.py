"""What the sessions of one guest allocate: charged to it, and refused over its limit.

ONNX Runtime itself has no limit for a session, only one for all of them (``OrtArenaCfg.max_mem``), which cannot be
changed. So sessions get an allocator of ours, which counts for the thread that loads or runs a model
(``native/memory.c``).
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from wasmetal.nn.backend import Services
from wasmetal.nn.errors import NnErrno, NnRefusal

_MOST = ctypes.c_size_t(-1).value // 4
_LIBRARIES = {
    ("linux", "x86_64"): "x86_64.so",
    ("linux", "aarch64"): "aarch64.so",
    ("darwin", "arm64"): "arm64.dylib",
}


class OnnxMemory:
    """What the sessions of a guest hold: results between nodes, outputs, weights in another order than the model's.

    Used by one thread at a time. Blocks of 64 KiB and more are kept for the next four runs, and charged, unless there
    is too little memory otherwise.
    """

    def __init__(self, services: Services) -> None:
        """Raises NnRefusal where there is no library for this machine, and MemoryError."""
        self._services = services
        self._library, self._path = _library()
        self._budget = self._library.wasmetal_budget_new()
        if self._budget is None:
            raise MemoryError
        self.in_use = 0
        """Bytes that were allocated and not freed at the last :meth:`settle`."""
        self.kept = 0
        """Bytes of blocks that were kept then."""
        self._charged = 0
        self._refused = 0
        self._values = (ctypes.c_size_t * 3)()

    def adopt(self, options: Any) -> None:
        """Have sessions with these options allocate here. To be called, as they are made, inside of :meth:`limited`."""
        options.enable_cpu_mem_arena = False  # it would not be used
        # All of a run's results as one block, as large as in the first run with such shapes, is more than they take.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.register_custom_ops_library(self._path)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """While this thread loads or runs a model: no more is allocated than may be charged, and then it is charged.

        If something was refused, raises NnRefusal with TOO_LARGE in place of ONNX Runtime's error, and nothing is kept.
        """
        limit = min(self._charged + self._services.room(), _MOST)
        self._library.wasmetal_budget_enter(self._budget, limit)
        try:
            yield
        except Exception:
            if refused := self._read()[2]:
                reason = f"limit reached: {refused} bytes more than what is left of {limit} for ONNX models"
                raise NnRefusal(NnErrno.TOO_LARGE, reason) from None
            raise
        finally:
            self._library.wasmetal_budget_leave()
            self.settle()
            if self._refused:
                self.trim()

    def settle(self) -> None:
        """Charge what was allocated since the last time, or less for what was freed."""
        used, self.kept, self._refused = self._read()
        self.in_use = used - self.kept
        if used != self._charged:
            self._services.charge(used - self._charged)
            self._charged = used

    def charge(self, nbytes: int) -> None:
        """Charge other memory; if there is too little, blocks that are kept are freed. Raises what ``charge`` does."""
        if nbytes > self._services.room():
            self.trim()
        self._services.charge(nbytes)

    def trim(self) -> None:
        """Free the blocks that are kept."""
        self._library.wasmetal_budget_trim(self._budget)
        self.settle()

    def close(self) -> None:
        """Free everything. The sessions were closed before. Idempotent."""
        if self._budget is not None:
            self.trim()
            self._library.wasmetal_budget_end(self._budget)
            self._budget = None

    def _read(self) -> tuple[int, int, int]:
        """Bytes in use or kept, those that are kept, and the size that was refused last, or 0."""
        self._library.wasmetal_budget_read(self._budget, self._values)
        used, kept, refused = self._values
        return used, kept, refused


@cache
def _library() -> tuple[Any, str]:
    """The allocator, and its file, which stays where it is."""
    name = _LIBRARIES.get((sys.platform, platform.machine()))
    if name is None:
        machine = f"{sys.platform} on {platform.machine()}"
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, f"ONNX models cannot be run on {machine}: no allocator for it")
    path = str(Path(__file__).parent / "generated" / name)
    library = ctypes.PyDLL(path)  # keeps Python's lock: each call takes less than to release and get it
    library.wasmetal_budget_new.restype = ctypes.c_void_p
    library.wasmetal_budget_enter.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    library.wasmetal_budget_read.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    for name in ("trim", "end"):
        getattr(library, f"wasmetal_budget_{name}").argtypes = (ctypes.c_void_p,)
    return library, path
