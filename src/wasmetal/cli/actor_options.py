"""Options of ``wasmetal actor``: the store, and what an actor is granted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wasmetal.cli.options import (
    Context,
    Device,
    DeviceMemoryLimit,
    Directories,
    KvType,
    MemoryLimit,
    Models,
    OptionError,
    Precise,
    Precision,
    Quantize,
    directories_of,
    limits_of,
    pairs,
)
from wasmetal.errors import setting_up

if TYPE_CHECKING:
    from wasmetal import Dir, Limits
    from wasmetal.actor.store import Key, Store

Where = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FOLDER|URL",
        envvar="WASMETAL_STORE",
        help="The store  [default: actors, in the folder of WASMETAL_HOME]",
        show_envvar=True,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="A file with a secret of at least 16 random bytes. Snapshots are signed with it, and refused if it does "
        "not authenticate them (HMAC-SHA256).",
    ),
]
Id = Annotated[str, typer.Argument(metavar="ACTOR", help="An actor in the store.", show_default=False)]
NewId = Annotated[
    str | None,
    typer.Option("--id", metavar="ACTOR", help="The new actor's id  [default: the program's name and random digits]"),
]
ProgramFile = Annotated[
    Path,
    typer.Argument(
        metavar="PROGRAM",
        help="A module that exports wm_actor_message; or chat, wasmetal's own guest.",
        show_default=False,
    ),
]
ProgramAgain = Annotated[
    Path | None,
    typer.Option(
        "--program", metavar="PROGRAM", help="The actor's program, if the store does not keep it: a module, or chat."
    ),
]
Sender = Annotated[
    str, typer.Option("--sender", metavar="NAME", help="What the actor is told of who has sent the messages.")
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Limit on the time of each message.")
]
AtEnd = Annotated[
    bool, typer.Option("--save-at-end", help="Save the actor once, at the end, and not after every message.")
]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each message.")]


@dataclass(frozen=True, slots=True)
class Granting:
    """What the command line grants an actor, which is no part of its state."""

    models: dict[str, str]
    directories: dict[str, Dir]
    device: str | None
    precision: Precise | None
    loading: dict[str, object]
    limits: Limits

    @classmethod
    def of(
        cls,
        model: Models = None,
        directory: Directories = None,
        timeout: Timeout = None,
        memory_limit: MemoryLimit = None,
        device_memory_limit: DeviceMemoryLimit = None,
        context: Context = None,
        kv_type: KvType = None,
        quantize: Quantize = None,
        device: Device = None,
        precision: Precision = None,
    ) -> Granting:
        """From the values of the options. Raises OptionError."""
        return cls(
            dict(pairs(model, "=", "NAME=MODEL")),
            directories_of(directory),
            device,
            precision,
            {"context": context, "kv_type": kv_type, "quantize": quantize},
            limits_of(timeout, memory_limit, device_memory_limit, None),
        )


def granting_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that has the options of :meth:`Granting.of` in place of a parameter ``granting``."""
    own, shared = (signature(each, eval_str=True) for each in (command, Granting.of))

    @wraps(command)
    def called(**values: Any) -> None:
        granting = Granting.of(**{name: values.pop(name) for name in shared.parameters})
        command(granting=granting, **values)

    parameters: list[Parameter] = []
    for each in own.parameters.values():
        parameters += shared.parameters.values() if each.name == "granting" else [each]
    called.__signature__ = own.replace(parameters=[each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters])  # type: ignore[attr-defined]
    return called


def opened_store(where: str | None, key: Path | None = None, create: bool = False) -> Store:
    """The store that the options name. Raises WasmetalError."""
    from wasmetal.actor.store import open_store
    from wasmetal.home import home

    return open_store(where or home() / "actors", key=read_key(key), create=create)


def read_key(path: Path | None) -> Key | None:
    """The key in a file, if one is named. Raises OptionError if it cannot be read."""
    from wasmetal.actor.store import HmacKey

    if path is None:
        return None
    with setting_up(f"read the key {path}", OptionError):
        return HmacKey(path.read_bytes())
