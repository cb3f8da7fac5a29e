"""A store by its path or URL."""

from __future__ import annotations

import os
from typing import Any

from wasmetal.actor.store.base import Store
from wasmetal.actor.store.directory import DirectoryStore
from wasmetal.actor.store.keys import Key
from wasmetal.actor.store.url import UrlStore


def open_store(
    where: str | os.PathLike[str],
    *,
    key: Key | None = None,
    compress: bool = False,
    create: bool = True,
    **options: Any,
) -> Store:
    """A :class:`DirectoryStore` on a path or a ``file://`` URL, a :class:`UrlStore` at any other URL.

    ``options`` are those of :class:`UrlStore`. Raises SnapshotError.
    """
    text = os.fspath(where)
    if "://" not in text:
        return DirectoryStore(text, key=key, compress=compress, create=create)
    if text.startswith("file://"):
        return DirectoryStore(text.removeprefix("file://"), key=key, compress=compress, create=create)
    return UrlStore(text, key=key, compress=compress, create=create, **options)
