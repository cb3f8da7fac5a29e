"""Compiled kernels: a table in memory, and a cache file for later processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Generic, TypeVar

from wasmetal.errors import DeviceError
from wasmetal.home import pipelines_directory
from wasmetal.kernels.catalog import Kernel

P = TypeVar("P")


class PipelineTable(Generic[P]):
    """Pipelines by kernel, compiled on first use. Callable from any thread."""

    def __init__(self, make: Callable[[Kernel], P]) -> None:
        """``make`` compiles a kernel, and raises DeviceError if the device cannot run it."""
        self._make = make
        self._made: dict[Kernel, P] = {}
        self._lock = threading.Lock()

    def get(self, kernel: Kernel) -> P:
        """The kernel's pipeline, compiled at its first use. Raises DeviceError if the device cannot run it."""
        pipeline = self._made.get(kernel)
        if pipeline is None:
            with self._lock:
                pipeline = self._made.get(kernel)
                if pipeline is None:
                    pipeline = self._made[kernel] = self._make(kernel)
        return pipeline

    @property
    def made(self) -> Collection[Kernel]:
        """The kernels that have a pipeline."""
        return self._made.keys()


def compiled_code(kernel: Kernel, target: str) -> bytes:
    """A kernel's code for one of ``catalog.TARGETS``. Raises DeviceError if it was not compiled for that target."""
    try:
        return kernel.code(target)
    except FileNotFoundError as error:
        raise DeviceError(f"kernel {kernel.name} was not compiled to {target}: generate the kernels") from error


class CacheFile:
    """A file of compiled kernels in the cache folder, with a file that holds its SHA-256 digest.

    Drivers may crash on damaged data, so a file that does not match its digest counts as missing. The file only saves
    time, so failures to read or write it are ignored.
    """

    def __init__(self, name: str) -> None:
        self.path = pipelines_directory() / name
        self._digest = self.path.with_name(f"{name}.sha256")

    def whole(self) -> bool:
        """Whether the file exists and matches its digest."""
        try:
            return self._digest.read_text() == _digest(self.path)
        except OSError:
            return False

    def read(self) -> bytes:
        """The content of the file; empty if the file is missing or damaged."""
        return self.path.read_bytes() if self.whole() else b""

    def replace(self, write: Callable[[Path], object]) -> None:
        """Replace the file with one that ``write`` creates at the path passed to it; any OSError is ignored."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent) as directory:
                file, digest = Path(directory) / "file", Path(directory) / "digest"
                write(file)
                digest.write_text(_digest(file))
                # Between the two calls, another process reads the new file with the old digest, and so ignores it.
                os.replace(file, self.path)
                os.replace(digest, self._digest)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
