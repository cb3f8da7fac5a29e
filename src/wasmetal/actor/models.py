"""Models as snapshots name them: by digest, so that an actor is thawed with the very same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from wasmetal.actor.manifest import GrantedModel

if TYPE_CHECKING:
    from wasmetal.models import Model
    from wasmetal.models.loaded import LoadedModel


def granted_model(model: LoadedModel) -> GrantedModel:
    """What a snapshot says of a model."""
    language = language_model(model)
    if language is None:
        return GrantedModel(model.name)
    return GrantedModel(model.name, language.digest.hex(), language.cache.dtype.name)


def language_model(model: LoadedModel) -> Model | None:
    """The model, if it has sessions."""
    from wasmetal.models.loaded import Capability  # noqa: PLC0415 (slow to import; here it is loaded)

    return cast("Model", model) if Capability.LANGUAGE in model.capabilities else None
