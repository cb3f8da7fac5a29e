"""Compiled kernels: in memory, and in cache files for later processes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Generic, TypeVar

from wasmetal.errors import DeviceError
from wasmetal.home import pipelines_directory
from wasmetal.kernels.catalog import CATALOG, Kernel

_log = logging.getLogger(__name__)

P = TypeVar("P")


class Pipelines(ABC, Generic[P]):
    """A device's pipelines by kernel, each compiled at its first use. Callable from any thread."""

    def __init__(self) -> None:
        self._made: dict[Kernel, P] = {}
        self._lock = threading.Lock()

    def get(self, kernel: Kernel) -> P:
        """The kernel's pipeline, compiled at its first use. Raises DeviceError if the device cannot run it."""
        pipeline = self._made.get(kernel)
        if pipeline is None:
            with self._lock:
                pipeline = self._made.get(kernel)
                if pipeline is None:
                    pipeline = self._made[kernel] = self.compile(kernel)
        return pipeline

    @property
    def made(self) -> Collection[Kernel]:
        """The kernels that have a pipeline."""
        return self._made.keys()

    @abstractmethod
    def compile(self, kernel: Kernel) -> P:
        """Compile a kernel. Raises DeviceError if the device cannot run it."""

    @abstractmethod
    def save(self) -> None:
        """Save what has been compiled in a :class:`CacheFile`, for later processes."""


def compiled_code(kernel: Kernel, target: str) -> bytes:
    """A kernel's code for one of ``catalog.TARGETS``. Raises DeviceError if it was not compiled for that target."""
    try:
        return kernel.code(target)
    except FileNotFoundError as error:
        raise DeviceError(f"kernel {kernel.name} was not compiled to {target}: generate the kernels") from error


def check_threads(kernel: Kernel, limit: int, device: str) -> None:
    """Raise DeviceError if a group of the kernel has more threads than the ``limit`` of a device, which is named."""
    if (threads := math.prod(kernel.threads)) > limit:
        raise DeviceError(f"kernel {kernel.name} has groups of {threads} threads; {device} allows {limit}")


def cache_key(*parts: str) -> str:
    """The part of a :class:`CacheFile`'s name that says what its content depends on: the backend, the GPU, …"""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "-".join(parts))


def code_digest(target: str) -> str:
    """A digest of the code of every kernel for one of ``catalog.TARGETS``, for :func:`cache_key`."""
    digest = hashlib.sha256()
    for name in sorted(CATALOG):
        with contextlib.suppress(FileNotFoundError):  # not a kernel for this target
            digest.update(CATALOG[name].code(target))
    return digest.hexdigest()[:16]


class CacheFile:
    """A file of compiled kernels in the cache folder, with a file that holds its SHA-256 digest.

    Drivers may crash on damaged data, so a file that does not match its digest counts as missing. The file only saves
    time, so failures to read or write it are not raised.
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

    def write(self, data: bytes) -> None:
        """Replace the content of the file, unless it is ``data`` already."""
        if data != self.read():
            self.replace(lambda path: path.write_bytes(data))

    def replace(self, write: Callable[[Path], object]) -> None:
        """Replace the file with one that ``write`` creates at the path passed to it.

        Logs an OSError or DeviceError, which leaves the file as it was.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent) as directory:
                file, digest = Path(directory) / "file", Path(directory) / "digest"
                write(file)
                digest.write_text(_digest(file))
                # Between the two calls, another process reads the new file with the old digest, and so ignores it.
                os.replace(file, self.path)
                os.replace(digest, self._digest)
        except (OSError, DeviceError) as error:
            _log.info("%s could not be saved: %s", self.path, error)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
