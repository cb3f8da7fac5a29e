"""Models at a URL."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from wasmetal.errors import ModelError, printable
from wasmetal.models.files.download import Progress, fetch, sha256_of
from wasmetal.models.files.gguf import GGUFFile, part_files
from wasmetal.models.files.records import StoredFile, models_directory

SCHEMES = ("http://", "https://")


def model_name(url: str) -> str:
    """What a model from this URL is called: the file's name without its ending. Raises ModelError if it has none."""
    found = re.fullmatch(r"([A-Za-z0-9][\w.+-]{0,199}?)(-\d{5}-of-\d{5})?\.gguf", _file_name(url), re.ASCII)
    if not found:
        raise ModelError(
            f"{printable(public(url))}: the URL of a model ends in the name of its file, such as name.gguf"
        )
    return found[1]


def public(url: str) -> str:
    """The URL without its user, password and query, which may be secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def pull(url: str, progress: Progress) -> list[StoredFile]:
    """Download a model, all parts of a split one, resuming what was interrupted.

    A server is not asked for a checksum: it has none. The lengths that it gives are checked, and that the files are a
    model. Raises ModelError, OSError or HTTPException.
    """
    folder = models_directory() / "url" / model_name(url)
    folder.mkdir(parents=True, exist_ok=True)
    file_name = _file_name(url)
    paths = []
    for name in part_files(file_name):
        paths.append(folder / name)
        if not paths[-1].exists():
            part = folder / f"{name}.part"
            parts = urlsplit(url)
            fetch(urlunsplit(parts._replace(path=_sibling(parts.path, name))), part, progress)
            part.chmod(0o644)  # whatever the umask: used in place only if no other user may write it
            part.replace(paths[-1])
    try:
        GGUFFile(paths[0])
    except ModelError:
        for path in paths:
            path.unlink()
        raise
    return [StoredFile(str(path), path.stat().st_size, sha256_of(path)) for path in paths]


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


def _sibling(path: str, name: str) -> str:
    return f"{path.rpartition('/')[0]}/{name}"
