"""What a cluster runs: types of actors, the store, and the options of the hosts. Read from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from wasmetal.errors import ClusterError, printable, setting_up

HOST_OPTIONS = {
    "device": str,
    "loading": dict,
    "durability": str,
    "resident": int,
    "memory_bytes": int,
    "device_bytes": int,
    "idle_seconds": float,
    "workers": int,
    "queue": int,
    "queued_bytes": int,
    "message_bytes": int,
    "reply_bytes": int,
    "keys": int,
}
"""Options of :class:`ActorHost` that a file may set, with their types."""

_TYPES = {str: "a text", dict: "a table", int: "a whole number", float: "a number", list: "a list"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterType:
    """A type of actors, as :class:`ActorType`, in values that can be sent to other machines."""

    program: bytes
    """The module."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Names or paths of models, which each node that has the type loads."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    dirs: Mapping[str, str] = field(default_factory=dict)
    """Folders of the nodes, such as a shared one."""
    wall_seconds: float = 300.0
    """Time that each message may take."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Ray's resources (``GPU``, ``memory`` or own ones) that a node must have for actors of this type to run there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """What a cluster runs."""

    store: str
    """Path of a folder that all nodes share, or a URL."""
    types: Mapping[str, ClusterType]
    host: Mapping[str, Any] = field(default_factory=dict)
    """Options of each node's :class:`ActorHost`: see HOST_OPTIONS."""
    store_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the store's URL: see :class:`UrlStore`."""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a TOML file; programs are files beside it. Raises ClusterError that names the file and what is wrong."""
        path = Path(path)
        with setting_up(f"read {path}", ClusterError):
            text = path.read_bytes()
        try:
            return cls._from(tomllib.loads(text.decode()), path.parent)
        except (ValueError, ClusterError) as error:
            raise ClusterError(f"{path}: {printable(str(error))}") from None

    @classmethod
    def _from(cls, found: dict[str, Any], folder: Path) -> Self:
        _check(found, "the file", {"store": str, "types": dict, "host": dict, "store_options": dict})
        for name in ("store", "types"):
            if not found.get(name):
                raise ClusterError(f"it has no `{name}`")
        host = found.get("host", {})
        _check(host, "[host]", HOST_OPTIONS)
        types = {name: _type(name, each, folder) for name, each in found["types"].items()}
        return cls(store=found["store"], types=types, host=host, store_options=found.get("store_options", {}))


def _type(name: str, found: object, folder: Path) -> ClusterType:
    where = f"[types.{name}]"
    if not isinstance(found, dict):
        raise ClusterError(f"{where} is no table")
    kinds: dict[str, type] = dict.fromkeys((each.name for each in fields(ClusterType)), dict)
    _check(found, where, kinds | {"program": str, "args": list, "wall_seconds": float})
    if "program" not in found:
        raise ClusterError(f"{where} has no `program`")
    for table in ("models", "env", "dirs"):
        _check(found.get(table, {}), f"{where} {table}", dict.fromkeys(found.get(table, {}), str))
    _check(found.get("resources", {}), f"{where} resources", dict.fromkeys(found.get("resources", {}), float))
    args = found.get("args", [])
    if not all(isinstance(each, str) for each in args):
        raise ClusterError(f"{where} args are no texts")
    with setting_up(f"read the program of {where}", ClusterError):
        program = (folder / found["program"]).read_bytes()
    return ClusterType(**{**found, "program": program, "args": tuple(args)})


def _check(found: Mapping[str, Any], where: str, kinds: Mapping[str, type]) -> None:
    """Raise ClusterError unless a table has only these names, each with a value of its kind."""
    for name, value in found.items():
        if name not in kinds:
            raise ClusterError(f"{where} has `{name}`, which is not known here; there are {', '.join(kinds)}")
        kind = kinds[name]
        fitting = (int, float) if kind is float else kind
        if not isinstance(value, fitting) or isinstance(value, bool):
            raise ClusterError(f"{where} has a `{name}` that is not {_TYPES[kind]}")
