"""wasmetal: GPU inference from sandboxed WebAssembly with no copies."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wasmetal.errors import setting_up

if TYPE_CHECKING:
    from wasmetal import errors
    from wasmetal.actor.actor import Actor, Snapshot
    from wasmetal.actor.hosting import ActorHost, ActorType
    from wasmetal.actor.program import ActorProgram
    from wasmetal.counters import Counters
    from wasmetal.device import open_device
    from wasmetal.host.grants import Dir
    from wasmetal.host.guest import Guest
    from wasmetal.host.limits import Limits
    from wasmetal.host.nn.grants import NnModel
    from wasmetal.host.program import Program
    from wasmetal.models import load_embedder, load_model

__all__ = [
    "Actor",
    "ActorHost",
    "ActorProgram",
    "ActorType",
    "Counters",
    "Dir",
    "Guest",
    "Limits",
    "NnModel",
    "Program",
    "Snapshot",
    "errors",
    "load_embedder",
    "load_model",
    "open_device",
]

_HOMES = {
    "Actor": "wasmetal.actor.actor",
    "ActorHost": "wasmetal.actor.hosting",
    "ActorProgram": "wasmetal.actor.program",
    "ActorType": "wasmetal.actor.hosting",
    "Counters": "wasmetal.counters",
    "Dir": "wasmetal.host.grants",
    "Guest": "wasmetal.host.guest",
    "Limits": "wasmetal.host.limits",
    "NnModel": "wasmetal.host.nn.grants",
    "Program": "wasmetal.host.program",
    "Snapshot": "wasmetal.actor.actor",
    "load_embedder": "wasmetal.models",
    "load_model": "wasmetal.models",
    "open_device": "wasmetal.device",
}


def __getattr__(name: str) -> Any:
    """Import a name at its first use, so that ``wasmetal --help`` loads neither Wasmtime nor NumPy."""
    if name == "errors":
        return import_module("wasmetal.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with setting_up("load wasmetal"):
        return getattr(import_module(_HOMES[name]), name)
