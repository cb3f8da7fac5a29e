"""A model file's bytes: read into private memory, or used in place where that is safe."""

from __future__ import annotations

import logging
import mmap
import os
import stat
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import ModelError, printable
from wasmetal.memory import FilePages
from wasmetal.memory.file_use import MAPPING, FileUse

log = logging.getLogger("wasmetal.models")


class Source:
    """A regular file, open for reading. Raises ModelError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # Without O_NONBLOCK, opening a pipe would wait for its other end.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise self._error(e.strerror or str(e)) from e
        weakref.finalize(self, os.close, self._fd)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise self._error("not a regular file")
        self.size = status.st_size
        """Bytes of the file when it was opened."""

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """A private copy of bytes of the file. Raises ModelError if the file has been shortened."""
        data = np.empty(nbytes, np.uint8)
        self.read_into(offset, data)
        return data

    def read_into(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill an array with bytes of the file. Raises ModelError if the file has been shortened."""
        done = 0
        while done < out.size:
            try:
                count = os.preadv(self._fd, [out.data[done:]], offset + done)
            except OSError as e:
                raise self._error(e.strerror or str(e)) from e
            if count == 0:
                raise self._error("shortened while it was being read")
            done += count

    def pages(self) -> FilePages | None:
        """The file's pages, mapped; None where a user, or a guest of this process, could shorten the file meanwhile."""
        status = os.fstat(self._fd)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning("%s is copied, because other users may write to it: chmod go-w", self._path)
            return None
        use = FileUse(status, MAPPING)
        if not use.begin():
            log.warning("%s is copied, because a guest has it open for writing", self._path)
            return None
        try:
            pages = FilePages(mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as e:
            use.end()
            raise self._error(f"cannot be mapped: {e}") from e
        weakref.finalize(pages, use.end).atexit = False
        return pages

    def _error(self, what: str) -> ModelError:
        return ModelError(printable(f"{self._path.name}: {what}"))
