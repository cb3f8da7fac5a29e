"""Downloading a URL into a file, resumably."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from wasmetal.errors import ModelError

Progress = Callable[[int, int], None]
"""Called with the bytes downloaded so far and the total."""

CHUNK = 1 << 20
_TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""


def fetch(url: str, part: Path, progress: Progress) -> None:
    """Download a URL into ``part``, resuming after the bytes that it has.

    If the server says by an ETag that its file has changed since, the download begins anew. Raises ModelError if the
    connection ends early, and OSError or HTTPException.
    """
    tag = part.with_name(f"{part.name}.etag")
    with part.open("ab") as file:
        if not file.tell():
            tag.unlink(missing_ok=True)
        _fetch(url, file, tag, progress)
    tag.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that only one of several processes downloads and the others find the result."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(url: str, file: IO[bytes], tag: Path, progress: Progress) -> None:
    done = file.tell()
    with _request(url, done, tag.read_text() if tag.exists() else None) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:  # the server ignored the range and sends the whole file
            done = 0
            file.seek(0)
            file.truncate()
            if etag := response.headers.get("ETag"):
                tag.write_text(etag)
        total = done + int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(done, max(done, total))
    if done < total:
        raise ModelError(f"the connection ended after {done} of {total} bytes; pull again to resume")


def _request(url: str, start: int, etag: str | None) -> Any:
    """The response with a URL's bytes from ``start`` on, or with all of them: if the server does not support ranges,
    or has another file than the one with this ``etag``.
    """
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and etag and not etag.startswith("W/"):
        headers["If-Range"] = etag
    try:
        return urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as e:
        if start and e.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _request(url, 0, None)
        raise
