"""What an actor was granted, and its forks with it: a device, models on it, and folders."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmetal.actor.program import ActorProgram
from wasmetal.device import Device
from wasmetal.host.grants import Dir, grant

if TYPE_CHECKING:
    from wasmetal.models.loaded import LoadedModel


class Grants:
    """A device and models, opened and loaded here unless they are already; closed once nobody uses them any more."""

    def __init__(
        self,
        program: ActorProgram,
        device: str | Device | None,
        models: Mapping[str, str | Path | LoadedModel],
        loading: Mapping[str, Any],
        folders: Mapping[str, str | Path | Dir],
    ) -> None:
        """The parameters are those of :class:`Guest`, which says what is raised. The caller is the first user."""
        self.device: Device | None = None
        self.models: Mapping[str, LoadedModel] = {}
        self.folders = dict(folders)
        self._users = 1
        self._lock = threading.Lock()
        self._opened = ExitStack()
        if device is not None or models or program.imports_device:
            try:
                granted = grant(device, models, loading, self._opened)
            except BaseException:
                self._opened.close()
                raise
            self.device, self.models = granted.device, granted.models

    def join(self) -> None:
        """One more uses them."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """One of the users is done."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._opened.close()
