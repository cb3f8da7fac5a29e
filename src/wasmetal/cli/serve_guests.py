"""``wasmetal serve --guest``: what the option says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import OptionError, directories_of, pairs

if TYPE_CHECKING:
    from wasmetal.serve.guest_spec import GuestSpec

FORM = "NAME=FILE.wasm[,model=NAME=MODEL][,dir=HOST::GUEST[:ro]]..."

Guests = Annotated[
    list[str] | None,
    typer.Option(
        "--guest",
        metavar=FORM,
        help="Make a guest a model of that name, and grant it models and directories, as `wasmetal run` does. Without "
        "a model it gets the first that is served, as default.",
    ),
]
Actors = Annotated[
    Path | None,
    typer.Option(
        "--actors", metavar="FOLDER", help="Keep conversations and responses there, each as an actor in a store."
    ),
]


def guest_spec(text: str) -> GuestSpec:
    """What one ``--guest`` asks for. Raises OptionError."""
    from wasmetal.serve.guest_spec import GuestSpec

    first, *grants = text.split(",")
    ((name, file),) = pairs([first], "=", FORM)
    given: dict[str, list[str]] = {"model": [], "dir": []}
    for kind, value in pairs(grants, "=", FORM):
        if kind not in given:
            raise OptionError(f"{kind!r} in {text!r} cannot be granted; write {FORM}")
        given[kind].append(value)
    return GuestSpec(name, Path(file), dict(pairs(given["model"], "=", "NAME=MODEL")), directories_of(given["dir"]))
