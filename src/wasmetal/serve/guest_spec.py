"""What ``wasmetal serve --guest`` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wasmetal.actor.program import ActorProgram
from wasmetal.serve.guest_model import GuestModel

if TYPE_CHECKING:
    from wasmetal import Dir
    from wasmetal.models import Model


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A guest that is to be a model. It can be pickled."""

    name: str
    file: Path
    models: Mapping[str, str]
    """Where those that it is granted come from, by its names; none: the first that is served, as ``default``."""
    dirs: Mapping[str, Dir]

    def make(self, models: Mapping[str, Model]) -> GuestModel:
        """The guest, with these models. Raises what ActorProgram does."""
        return GuestModel(self.name, ActorProgram(self.file), models, self.dirs)
