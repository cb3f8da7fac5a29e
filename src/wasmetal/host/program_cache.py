"""Compiled programs on disk, so that the next process need not compile them again.

A compiled program is machine code, and Wasmtime runs it unchecked. So a file is used only if no other user can have
written it: the file and its folder must belong to this user and be writable by nobody else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

import wasmtime

from wasmetal import processor
from wasmetal.home import home
from wasmetal.memory.wasmtime_engine import SETTINGS
from wasmetal.wasmtime_c import version

MAX_BYTES = 256 << 20
"""Bytes that the folder may hold; the least recently used files are removed first."""
WORTH_KEEPING = 4096
"""Modules of fewer bytes compile in a few milliseconds at most, and are not kept."""

_DIGEST_BYTES = hashlib.sha256().digest_size

T = TypeVar("T")

log = logging.getLogger("wasmetal.programs")
"""Why a compiled program was not read or written, at level DEBUG."""


class Compiled(Protocol):
    """A compiled module or component."""

    def serialize(self) -> bytes | bytearray:
        """Its machine code."""


def load(engine: wasmtime.Engine, code: bytes, deserialize: Callable[[wasmtime.Engine, bytes], T]) -> T | None:
    """What ``deserialize`` makes of the compiled ``code``; None if the cache has nothing that can be used."""
    if not _used(code):
        return None
    path = _path(code)
    try:
        content = _read_private(path)
        digest, compiled = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(compiled).digest() != digest:
            raise ValueError("damaged")
        return deserialize(engine, compiled)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, wasmtime.WasmtimeError) as error:
        log.debug("%s is not used: %s", path, error)
        return None


def save(module: Compiled, code: bytes) -> None:
    """Keep a compiled module or component for :meth:`load`.

    If the folder cannot be written, the next process compiles again.
    """
    if not _used(code):
        return
    path = _path(code)
    try:
        _write_private(path, bytes(module.serialize()))
        _evict(path.parent)
    except (OSError, wasmtime.WasmtimeError) as error:
        log.debug("%s is not written: %s", path, error)


def _used(code: bytes) -> bool:
    return len(code) >= WORTH_KEEPING and os.environ.get("WASMETAL_NO_PROGRAM_CACHE") != "1"


def _path(code: bytes) -> Path:
    """The file, named by everything that the compiled code depends on."""
    depends = (version(), sorted(SETTINGS.items()), _processor(), hashlib.sha256(code).hexdigest())
    return home() / "programs" / f"{hashlib.sha256(repr(depends).encode()).hexdigest()}.cwasm"


@cache
def _processor() -> str:
    """The host's processor, with its instruction set as far as the system reports it. (Wasmtime checks that too.)"""
    flags = " ".join(sorted(processor.flags()))
    return f"{platform.system()} {platform.machine()} {platform.processor()} {flags}"


def _read_private(path: Path) -> bytes:
    """A file's content. Raises OSError, PermissionError among them if another user could have written it."""
    _check_private(os.stat(path.parent, follow_symlinks=False), path.parent)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        _check_private(os.fstat(handle), path)
        with contextlib.suppress(OSError):
            os.utime(handle)  # used just now
        return file.read()


def _check_private(found: os.stat_result, path: Path) -> None:
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written by another user")


def _write_private(path: Path, compiled: bytes) -> None:
    """Replace the file in one step, so that another process reads either the old one or the new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(os.stat(path.parent, follow_symlinks=False), path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(compiled).digest() + compiled)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _evict(folder: Path) -> None:
    """Remove the least recently used files until the rest fits."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process evicts too
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MAX_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= size
