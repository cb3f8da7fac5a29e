"""Compiled kernels: those of this process by kernel, and a file of them for the next process."""

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
    """Every pipeline made so far, by kernel."""

    def __init__(self, make: Callable[[Kernel], P]) -> None:
        """``make`` compiles a kernel; it raises DeviceError if the device cannot run it."""
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
    """A file of compiled kernels in the cache folder, with its digest beside it.

    Drivers are not known to survive damaged data, so a file that its digest does not fit counts as missing. The file
    only saves time: if it cannot be read or written, that is passed over in silence.
    """

    def __init__(self, name: str) -> None:
        self.path = pipelines_directory() / name
        self._digest = self.path.with_name(f"{name}.sha256")

    def whole(self) -> bool:
        """Whether the file is there and undamaged."""
        try:
            return self._digest.read_text() == _digest(self.path)
        except OSError:
            return False

    def read(self) -> bytes:
        """The file's content; none if it is missing or damaged."""
        return self.path.read_bytes() if self.whole() else b""

    def replace(self, write: Callable[[Path], object]) -> None:
        """Have ``write`` make the file anew, at a path that it is given; OSError in it is passed over."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent) as directory:
                file, digest = Path(directory) / "file", Path(directory) / "digest"
                write(file)
                digest.write_text(_digest(file))
                # In this order a process that comes between the two sees a file without its digest: a damaged one.
                os.replace(file, self.path)
                os.replace(digest, self._digest)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
