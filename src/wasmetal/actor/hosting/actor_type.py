"""What the actors of a host are made of: programs, what these are granted, and what all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmetal.actor.actor import Actor, Snapshot
from wasmetal.actor.program import ActorProgram
from wasmetal.closing import Closing
from wasmetal.device import Device
from wasmetal.errors import GuestError, SnapshotError, printable
from wasmetal.host import wasi
from wasmetal.host.grants import Dir, grant
from wasmetal.host.limits import Limits

if TYPE_CHECKING:
    from wasmetal.models.loaded import LoadedModel

LIMITS = Limits(wall_seconds=300.0)
"""Of actors, unless their type says otherwise. Without a limit on its time, a message could keep a worker for ever."""


class WrongTypeError(GuestError):
    """The actor is of another type than its sender asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorType:
    """A program, and what its actors are granted. All is as for :class:`Actor`."""

    program: ActorProgram | str | Path | bytes
    models: Mapping[str, str | Path | LoadedModel] = field(default_factory=dict)
    """By the guest's names. The host loads each once for all of its actors."""
    args: Sequence[str] = ()
    """Of new actors, unless they are created with others."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Of new actors, unless they are created with another."""
    dirs: Mapping[str, str | Path | Dir] = field(default_factory=dict)
    limits: Limits = LIMITS
    """Of each actor; ``wall_seconds`` is that of each message."""
    stdout: wasi.Output | None = None
    stderr: wasi.Output | None = None


class ActorTypes(Closing):
    """The types of a host by name, compiled, with one device and each model loaded once."""

    def __init__(
        self, given: ActorType | Mapping[str, ActorType], device: str | Device | None, loading: Mapping[str, Any]
    ) -> None:
        """Raises what :class:`ActorProgram`, :func:`open_device` and :func:`load_model` do; GuestError for no types."""
        named = {"default": given} if isinstance(given, ActorType) else dict(given)
        if not named:
            raise GuestError("an actor host needs at least one type of actors")
        programs: dict[object, ActorProgram] = {}
        self._types: dict[str, ActorType] = {}
        self._programs: dict[str, ActorProgram] = {}
        for name, each in named.items():
            program = each.program
            if not isinstance(program, ActorProgram):
                key = str(program) if isinstance(program, Path) else program
                program = programs.get(key) or programs.setdefault(key, ActorProgram(program))
            self._programs[name] = program
            self._types[name] = each
        self.device: Device | None = None
        self._cleanup = ExitStack()
        uses_device = any(program.imports_device for program in self._programs.values())
        if device is not None or uses_device or any(each.models for each in named.values()):
            self._load(device, loading)

    def _load(self, device: str | Device | None, loading: Mapping[str, Any]) -> None:
        sources = {_key(model): model for each in self._types.values() for model in each.models.values()}
        with ExitStack() as stack:
            granted = grant(device, sources, loading, stack)
            self._cleanup = stack.pop_all()
        self.device = granted.device
        for name, each in self._types.items():
            models = {known: granted.models[_key(model)] for known, model in each.models.items()}
            self._types[name] = replace(each, models=models)

    def close(self) -> None:
        """Close the device and the models that were opened here. Idempotent."""
        self._cleanup.close()

    def check(self, kind: str | None) -> None:
        """Raise GuestError if there is no such type."""
        if kind is not None and kind not in self._types:
            raise GuestError(f"the host has no type of actors {printable(repr(kind))}; it has {self._names()}")

    def make(self, actor_id: str, kind: str | None, args: Sequence[str] | None, env: Mapping[str, str] | None) -> Made:
        """A new actor. Raises what :class:`Actor` does, and GuestError if several types could be meant."""
        self.check(kind)
        if kind is None:
            if len(self._types) > 1:
                raise GuestError(f"actor {actor_id} is new: say of which type it is to be ({self._names()})")
            kind = next(iter(self._types))
        each = self._types[kind]
        actor = Actor(
            self._programs[kind],
            id=actor_id,
            device=self._device(kind),
            models=each.models,
            args=each.args if args is None else args,
            env=each.env if env is None else env,
            dirs=each.dirs,
            limits=each.limits,
            stdout=each.stdout,
            stderr=each.stderr,
        )
        return Made(actor, kind)

    def thaw(self, snapshot: Snapshot, recorded: str | None, asked: str | None) -> Made:
        """An actor as it was. ``recorded``: the type that its snapshot names; ``asked``: the one that a sender names.

        Raises what :meth:`Actor.thaw` does, SnapshotError if no type, or more than one, has its program, and
        GuestError if ``asked`` is another type than the actor's.
        """
        digest = snapshot.manifest.program_digest
        fitting = [name for name, program in self._programs.items() if program.digest == digest]
        kind = recorded if recorded in fitting else asked if asked in fitting else None
        if kind is None:
            if len(fitting) != 1:
                raise SnapshotError(
                    f"{len(fitting) or 'none'} of the host's types ({self._names()}) have the actor's program, "
                    f"{printable(snapshot.manifest.program_name)} (SHA-256 {digest[:16]}…)"
                )
            kind = fitting[0]
        check_same(kind, asked)
        each = self._types[kind]
        actor = Actor.thaw(
            snapshot,
            self._programs[kind],
            device=self._device(kind),
            models=each.models,
            dirs=each.dirs,
            limits=each.limits,
            stdout=each.stdout,
            stderr=each.stderr,
        )
        return Made(actor, kind)

    def _device(self, kind: str) -> Device | None:
        return self.device if self._programs[kind].imports_device or self._types[kind].models else None

    def _names(self) -> str:
        return printable(", ".join(self._types))


@dataclass(frozen=True, slots=True)
class Made:
    """An actor and the name of its type."""

    actor: Actor
    kind: str


def check_same(kind: str, asked: str | None) -> None:
    """Raise WrongTypeError if an actor of this type was asked for as another's."""
    if asked not in (None, kind):
        raise WrongTypeError(f"the actor is of the type {kind!r}, not {printable(repr(asked))}")


def _key(model: str | Path | LoadedModel) -> str:
    """The same for the same model."""
    return str(model) if isinstance(model, str | Path) else f"loaded {id(model)}"
