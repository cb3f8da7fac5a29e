"""Models on the Hugging Face Hub, or a mirror of it, through ``huggingface_hub``.

Its own settings hold: the endpoint (HF_ENDPOINT), the token (HF_TOKEN, or ``hf auth login``), the cache (HF_HOME,
HF_HUB_CACHE) and whether it is the only source (HF_HUB_OFFLINE). A connection that is lost is resumed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from wasmetal.errors import ModelError, printable
from wasmetal.models.files.download import Progress, sha256_of
from wasmetal.models.files.gguf import part_files
from wasmetal.models.files.records import StoredFile

PREFIX = "hf:"
_LISTED = 24
"""Most models that a message names."""
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_AUXILIARY = re.compile(r"(?:^|[/._-])(?:mmproj|imatrix)", re.IGNORECASE)
"""Files that are no language models: the vision part of one, and statistics for quantizing it."""
FOLDER = "config.json"
"""The file that makes a repository a folder of Hugging Face, and stands for it in names."""
_TOKENIZERS = ("tokenizer.json", "vocab.txt")
"""Files that a tokenizer may be in; the first of them is taken."""
_BESIDE = (
    *("tokenizer_config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("model.safetensors.index.json", "modules.json", "sentence_bert_config.json"),
)
_POOLING = re.compile(r"[0-9]+_Pooling/config\.json")
"""The pooling of an embedding model, where sentence-transformers puts it."""
_WEIGHTS = re.compile(r"model(?:-\d{5}-of-\d{5})?\.safetensors")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, and its SHA-256 if the hub gives it."""

    name: str
    nbytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model in a repository: a file, the parts of a split one, or a folder, of which the first file is FOLDER."""

    repository: str
    files: Sequence[HubFile]
    licence: str | None
    """Its identifier, if the repository names one."""

    @property
    def name(self) -> str:
        """``hf:ORG/REPO:FILE``, with the first file; of a folder, ``hf:ORG/REPO``."""
        return self.source.removesuffix(f":{FOLDER}")

    @property
    def source(self) -> str:
        """``hf:ORG/REPO:FILE``, with the first file."""
        return f"{PREFIX}{self.repository}:{self.files[0].name}"


def parse(name: str) -> tuple[str, str]:
    """Repository and choice of ``hf:ORG/REPO[:CHOICE]``. Raises ModelError if the name has another form."""
    repository, _, choice = name.removeprefix(PREFIX).partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise ModelError(f"{name!r} has not the form hf:ORG/REPO, hf:ORG/REPO:FILE or hf:ORG/REPO:Q4_K_M")
    return repository, choice


def chosen(names: Iterable[str], choice: str) -> list[list[str]]:
    """The models among files that a choice means: each the list of its parts.

    The choice is a file's name, with or without its folder; or part of it that stands alone, such as a quantization's
    name; or nothing, for every model.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(name for name in names if name.lower().endswith(".gguf")):
        models.setdefault(_PART.sub("", name[:-5]), []).append(name)
    for exact in ([choice], [name for parts in models.values() for name in parts if name.endswith(f"/{choice}")]):
        if found := [parts for parts in models.values() if set(parts) & set(exact)]:
            return found
    word = re.compile(rf"(?<![a-z0-9]){re.escape(choice)}(?![a-z0-9_])", re.IGNORECASE)
    return [
        parts for stem, parts in models.items() if not _AUXILIARY.search(stem) and (not choice or word.search(stem))
    ]


def folder_of(names: Iterable[str]) -> list[str]:
    """The files of a repository that make it a folder of Hugging Face, FOLDER first; none if it is not one."""
    there = set(names)
    tokenizer = [name for name in _TOKENIZERS if name in there][:1]
    pooling = sorted(name for name in there if _POOLING.fullmatch(name))
    weights = sorted(name for name in there if _WEIGHTS.fullmatch(name))
    if "model.safetensors.index.json" in there:
        weights = [name for name in weights if name != "model.safetensors"]
    if not weights or not tokenizer or FOLDER not in there:
        return []
    return [FOLDER, *tokenizer, *(name for name in _BESIDE if name in there), *pooling, *weights]


def look_up(name: str) -> HubModel:
    """The model that ``hf:ORG/REPO[:CHOICE]`` names. Raises ModelError if there is none, or more than one."""
    repository, choice = parse(name)
    library = _library()
    files, licence = _cached(library, repository) if library.is_offline_mode() else _published(library, repository)
    models = chosen(files, choice)
    if not models and choice in ("", FOLDER) and (parts := folder_of(files)):
        return HubModel(repository, [files[part] for part in parts], licence)
    if not models:
        there = _listed(name for name in files if name.lower().endswith(".gguf"))
        folder = (
            f", and beside {FOLDER} no {' or '.join(_TOKENIZERS)}, or no safetensors files" if FOLDER in files else ""
        )
        there = there or f"none{folder}"
        raise ModelError(f"{printable(name)}: no such GGUF file; the repository has {there}")
    if len(models) > 1:
        there = _listed(parts[0] for parts in models)
        raise ModelError(f"{printable(name)} may be any of {len(models)} files: {there}; name one after a colon")
    (parts,) = models
    if missing := set(part_files(parts[0])) - set(parts):
        raise ModelError(f"{printable(name)}: the part {printable(min(missing))} is not there")
    return HubModel(repository, [files[part] for part in parts], licence)


def pull(model: HubModel, progress: Progress) -> list[StoredFile]:
    """Download a model into the library's cache, unless it is there. Raises ModelError, also if a hash differs."""
    library = _library()
    total, done, stored, roots = sum(file.nbytes for file in model.files), 0, [], set()
    for file in model.files:
        bar = _bar(partial(_report, progress, done, total))
        download = partial(library.hf_hub_download, model.repository, file.name, tqdm_class=bar)
        path = Path(_asked(library, model.repository, download))
        sha256 = sha256_of(path)
        if file.sha256 not in (None, sha256):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise ModelError(f"{file.name} is not the published file (its SHA-256 differs); try again")
        stored.append(StoredFile(str(path), path.stat().st_size, sha256))
        done += stored[-1].nbytes
        roots.add(path.parents[file.name.count("/")])
    if model.files[0].name == FOLDER and len(roots) > 1:
        raise ModelError(f"{model.repository} changed while it was being pulled; pull it again")
    return stored


def _library() -> ModuleType:
    try:
        library = import_module("huggingface_hub")
        import_module("huggingface_hub.constants")
        import_module("huggingface_hub.errors")
    except ImportError:
        raise ModelError(
            "models of the Hugging Face Hub need the package huggingface_hub: pip install 'wasmetal[hub]'"
        ) from None
    return library


def _published(library: ModuleType, repository: str) -> tuple[dict[str, HubFile], str | None]:
    """The files of a repository, and its licence, from the hub."""
    info = _asked(library, repository, lambda: library.HfApi().model_info(repository, files_metadata=True))
    files = {
        each.rfilename: HubFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None)
        for each in info.siblings or ()
    }
    licence = info.card_data.get("license") if info.card_data else None
    if licence == "other":
        licence = info.card_data.get("license_name") or licence
    return files, printable(licence) if isinstance(licence, str) else None


def _cached(library: ModuleType, repository: str) -> tuple[dict[str, HubFile], None]:
    """The files of a repository's main branch that are in the library's cache."""
    files = {}
    try:
        repositories = library.scan_cache_dir(library.constants.HF_HUB_CACHE).repos
    except library.errors.CacheNotFound:
        repositories = ()
    for each in repositories:
        if (each.repo_type, each.repo_id) == ("model", repository) and (main := each.refs.get("main")):
            for file in main.files:
                name = file.file_path.relative_to(main.snapshot_path).as_posix()
                files[name] = HubFile(name, file.size_on_disk, None)
    return files, None


def _asked(library: ModuleType, repository: str, ask: Callable[[], Any]) -> Any:
    """What the library answers. Raises ModelError, in one line, if it fails."""
    errors = library.errors
    try:
        return ask()
    except errors.GatedRepoError:
        raise ModelError(
            f"{repository} asks that you accept its conditions: do so at {library.constants.ENDPOINT}/{repository}, "
            "and set HF_TOKEN or log in with: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"no repository {repository} at {library.constants.ENDPOINT}, or it is private: then set HF_TOKEN"
        ) from None
    except (OSError, ValueError, errors.EntryNotFoundError, errors.HTTPError, errors.XetDownloadError) as e:
        reason = next(iter(str(e).strip().splitlines()), "") or type(e).__name__
        raise ModelError(printable(f"could not pull from {repository}: {reason}")) from e


def _report(progress: Progress, before: int, total: int, count: int) -> None:
    progress(before + count, max(total, before + count))


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(map(printable, found[:_LISTED])) + more


def _bar(report: Callable[[int], None]) -> type:
    """A progress bar as the library makes them for a download, which shows nothing and reports the bytes.

    With Xet there are two: of what was received, and of what was put together from it. The larger number is reported.
    """
    tqdm: Any = import_module("tqdm.std").tqdm
    most = 0

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            self.n += n or 0
            if self.n > most:
                most = int(self.n)
                report(most)

    return Bar
