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
from wasmetal.memory.file_locks import lock_for_mapping

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
        """The file's pages, mapped; None, with a warning, if another user or a guest could change them meanwhile.

        Guests of all processes are kept from that until neither this object nor the pages are left. Raises ModelError.
        """
        if reason := self._changeable():
            log.warning("%s is copied, because %s", self._path, reason)
            return None
        try:
            return FilePages(mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as e:
            raise self._error(f"cannot be mapped: {e}") from e

    def _changeable(self) -> str | None:
        """Who could change the file while it is mapped; None if nobody can who is not trusted."""
        status = os.fstat(self._fd)
        if status.st_uid not in (0, os.geteuid()):
            return "it belongs to another user"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "other users may write to it: chmod go-w"
        try:
            # The mapping has a duplicate of the descriptor, and with it the lock.
            return None if lock_for_mapping(self._fd) else "a guest has it open for writing"
        except OSError as e:
            return f"it cannot be locked: {e.strerror}"

    def _error(self, what: str) -> ModelError:
        return ModelError(printable(f"{self._path.name}: {what}"))
