"""Language models: their files, tokenizers and chat templates, and sessions with them on a device."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wasmetal.models.embedder import Embedder, load_embedder
    from wasmetal.models.lm.chat_families import FAMILIES
    from wasmetal.models.lm.chat_template import ChatTemplate
    from wasmetal.models.lm.heads import TopLogits
    from wasmetal.models.lm.model import Model, load_model
    from wasmetal.models.lm.session import Request, Session
    from wasmetal.models.lm.tokenizer import Tokenizer

__all__ = [
    "FAMILIES",
    "ChatTemplate",
    "Embedder",
    "Model",
    "Request",
    "Session",
    "Tokenizer",
    "TopLogits",
    "load_embedder",
    "load_model",
]

_HOMES = {
    "FAMILIES": "wasmetal.models.lm.chat_families",
    "ChatTemplate": "wasmetal.models.lm.chat_template",
    "Embedder": "wasmetal.models.embedder",
    "Model": "wasmetal.models.lm.model",
    "Request": "wasmetal.models.lm.session",
    "Session": "wasmetal.models.lm.session",
    "Tokenizer": "wasmetal.models.lm.tokenizer",
    "TopLogits": "wasmetal.models.lm.heads",
    "load_embedder": "wasmetal.models.embedder",
    "load_model": "wasmetal.models.lm.model",
}


def __getattr__(name: str) -> Any:
    """Import a name at its first use, so that a worker process which renders templates loads nothing else."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
