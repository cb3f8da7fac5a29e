"""What a guest is granted: a device, models on it, and directories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmetal.counters import Counters
from wasmetal.device import Device, open_device
from wasmetal.errors import GuestError
from wasmetal.host.descriptors import File

if TYPE_CHECKING:
    from wasmetal.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Granted:
    """A device, and models by the guest's names for them."""

    device: Device
    models: Mapping[str, LoadedModel]
    counters: Counters = field(default_factory=Counters)
    """The cost of loading the models that were not loaded yet."""


def grant(
    device: str | Device | None,
    models: Mapping[str, str | Path | LoadedModel],
    loading: Mapping[str, Any],
    cleanup: ExitStack,
) -> Granted:
    """Open the device and load the models, unless they are open and loaded already; ``cleanup`` closes what was opened.

    ``loading``: options of :func:`load_model`.
    If no device is given, the device of a loaded model is taken, or else the default one. Raises GuestError if a loaded
    model is on another device, and what :func:`open_device` and :func:`load_model` raise.
    """
    if device is None:
        device = next((model.device for model in models.values() if not isinstance(model, str | Path)), None)
    if device is None or isinstance(device, str):
        device = cleanup.enter_context(open_device(device))
    granted: dict[str, LoadedModel] = {}
    counters = Counters()
    for name, source in models.items():
        if not isinstance(source, str | Path):
            if source.device is not device:
                raise GuestError(f"model {name!r} is on another device than the guest; load it on the guest's")
            granted[name] = source
        else:
            from wasmetal.models import load_model  # noqa: PLC0415 (slow to import, and few guests need it)

            granted[name] = cleanup.enter_context(load_model(source, device, **loading))
            counters.add(granted[name].counters)
    return Granted(device, granted, counters)


@dataclass(frozen=True, slots=True)
class Dir:
    """A directory of the host, to be granted to a guest."""

    path: str | Path
    read_only: bool = False
    """Whether the guest may only read what is in it."""


def open_directory(name: str, directory: str | Path | Dir) -> File:
    """Open a directory for a guest, which knows it as ``name``. Raises GuestError."""
    given = directory if isinstance(directory, Dir) else Dir(directory)
    try:
        fd = os.open(given.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise GuestError(f"cannot grant directory {given.path}: {reason}") from error
    return File(fd, given.read_only, is_directory=True, name=name.encode())
