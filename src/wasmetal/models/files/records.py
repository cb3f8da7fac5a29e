"""The models on this machine: for each one a record, a small JSON file, of what was pulled and where it lies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wasmetal.errors import ModelError
from wasmetal.home import home


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a model, as it was when it was pulled."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that is on this machine."""

    name: str
    source: str
    """Where it came from: ``hf:ORG/REPO:FILE``, a URL, or a package."""
    licence: str | None
    """Its identifier, if the source names one."""
    files: Sequence[StoredFile]
    """In the order of the parts, if it is split; of a folder, ``config.json`` is the first."""

    @property
    def path(self) -> Path:
        """What to open: the first file, or the folder."""
        first = Path(self.files[0].path)
        return first.parent if first.name == "config.json" else first

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)

    @property
    def complete(self) -> bool:
        """Whether all files are still where they were put."""
        return all(Path(file.path).is_file() for file in self.files)


def models_directory() -> Path:
    """The folder of models. It need not exist yet."""
    return home() / "models"


def recorded() -> list[StoredModel]:
    """All models that have a record, by name. Raises ModelError if a record cannot be read."""
    return sorted((_read(path) for path in _folder().glob("*.json")), key=lambda model: model.name)


def find(name: str) -> StoredModel | None:
    """The model that was recorded by this name. Raises ModelError if the record cannot be read."""
    path = _path(name)
    return _read(path) if path.exists() else None


def record(model: StoredModel) -> None:
    """Write a model's record. Raises OSError."""
    path = _path(model.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(asdict(model), indent=2) + "\n")
    part.replace(path)


def forget(model: StoredModel) -> None:
    """Remove a model's record, and those of its files that no other record names. Raises OSError."""
    _path(model.name).unlink(missing_ok=True)
    kept = {file.path for other in recorded() for file in other.files}
    for file in model.files:
        if file.path not in kept:
            path = Path(file.path)
            _unlink(path)
            if path.parents[1] == models_directory() / "url":
                shutil.rmtree(path.parent, ignore_errors=True)


def _unlink(path: Path) -> None:
    """Remove a file. In the cache of huggingface_hub it is a link to a blob: that goes with the last link to it."""
    snapshots = path.parent
    while snapshots.name != "snapshots" and snapshots != snapshots.parent:
        snapshots = snapshots.parent
    blob = path.resolve() if path.is_symlink() and snapshots.name == "snapshots" else None
    path.unlink(missing_ok=True)
    if blob and blob.parent == snapshots.parent / "blobs":
        links = (link for link in snapshots.rglob("*") if link.is_symlink())
        if not any(link.resolve() == blob for link in links):
            blob.unlink(missing_ok=True)


def _folder() -> Path:
    return models_directory() / "records"


def _path(name: str) -> Path:
    return _folder() / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> StoredModel:
    try:
        fields = json.loads(path.read_text())
        files = tuple(StoredFile(str(f["path"]), int(f["nbytes"]), str(f["sha256"])) for f in fields["files"])
        licence = None if fields["licence"] is None else str(fields["licence"])
        model = StoredModel(str(fields["name"]), str(fields["source"]), licence, files)
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ModelError(
            f"the record {path} of a model cannot be read: {e!r}; remove it and pull the model again"
        ) from e
    if not files:
        raise ModelError(f"the record {path} of a model names no file; remove it and pull the model again")
    return model
