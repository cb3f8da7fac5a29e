"""``wasmetal serve --guest``: what the option says, and what the guest is granted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import OptionError, directories_of, pairs

if TYPE_CHECKING:
    from wasmetal import Dir
    from wasmetal.models import Model
    from wasmetal.serve.guest_model import GuestModel

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


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """What one ``--guest`` says."""

    name: str
    file: Path
    models: Mapping[str, str]
    dirs: Mapping[str, Dir]

    @classmethod
    def parse(cls, text: str) -> GuestSpec:
        """From the option's value. Raises OptionError."""
        first, *grants = text.split(",")
        ((name, file),) = pairs([first], "=", FORM)
        given: dict[str, list[str]] = {"model": [], "dir": []}
        for kind, value in pairs(grants, "=", FORM):
            if kind not in given:
                raise OptionError(f"{kind!r} in {text!r} cannot be granted; write {FORM}")
            given[kind].append(value)
        return cls(name, Path(file), dict(pairs(given["model"], "=", "NAME=MODEL")), directories_of(given["dir"]))

    def load(self, default: Model | None, model_of: Callable[[str], Model]) -> GuestModel:
        """The guest. ``default``: the model that it gets if it names none. Raises what ActorProgram does."""
        from wasmetal.actor.program import ActorProgram
        from wasmetal.serve.guest_model import GuestModel

        models = {name: model_of(model) for name, model in self.models.items()}
        if not models and default:
            models = {"default": default}
        return GuestModel(self.name, ActorProgram(self.file), models, self.dirs)
