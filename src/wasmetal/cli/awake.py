"""An actor of a store, awake in this process: made or thawed under its lease, sent messages, and saved."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmetal import packaged
from wasmetal.actor.actor import Actor, Snapshot
from wasmetal.actor.chunks import digest_of_program
from wasmetal.actor.kept_programs import Programs
from wasmetal.actor.manifest import HOST, GrantedModel, Manifest
from wasmetal.actor.program import ActorProgram
from wasmetal.actor.store import Lease, Store, UrlStore
from wasmetal.actor.store.url_leases import UrlLease
from wasmetal.cli.options import DEFAULT_MODEL
from wasmetal.device import open_device
from wasmetal.errors import GuestError, SnapshotError, WasmetalError, printable
from wasmetal.host.compiler import binary_of
from wasmetal.host.wasm import read_module

if TYPE_CHECKING:
    from wasmetal.cli.actor_options import Granting
    from wasmetal.host.wasi import Output

PACKAGED = "chat"
"""The program that needs no file: wasmetal's own."""


@dataclass(frozen=True, slots=True)
class Module:
    """A program, and the bytes by which a store keeps it."""

    program: ActorProgram
    binary: bytes

    @classmethod
    def read(cls, path: Path) -> Module:
        """From a file, or by the name of wasmetal's own. Raises GuestError."""
        if str(path) == PACKAGED and not path.exists():
            path = packaged.guest(PACKAGED)
        program, binary = ActorProgram(path), binary_of(*read_module(path))
        if digest_of_program(binary) != program.digest:
            raise GuestError(f"{path} was changed while it was read: try again")
        return cls(program, binary)

    @classmethod
    def kept(cls, name: str, binary: bytes) -> Module:
        """From what a store keeps, under the name that the file had. Raises GuestError."""
        program = ActorProgram(binary)
        program.name = name
        return cls(program, binary)


class Awake:
    """An actor that is awake."""

    def __init__(
        self, actor: Actor, store: Store, lease: Lease, module: Module, saved: bool, beside: Mapping[str, Any]
    ) -> None:
        """``saved``: the store has a snapshot of it. ``beside``: what a host has put into that, which stays there."""
        self.actor, self.saved = actor, saved
        self._beside = beside
        self._store, self._lease, self._module = store, lease, module
        self._kept = False

    @property
    def id(self) -> str:
        """The actor's id in the store."""
        return self._lease.actor_id

    def save(self) -> None:
        """Make the actor's state its snapshot, and have the store keep its program. Raises WasmetalError."""
        if not self._kept:
            Programs(self._store).keep(self._module.binary)
            self._kept = True
        with self._store.saving(self.id, self._lease) as saving:
            saving.commit({**self.actor.freeze_into(saving).to_json(), **self._beside})
        self.saved = True


@contextmanager
def made(
    store: Store,
    actor_id: str,
    module: Module,
    granting: Granting,
    arguments: list[str],
    environment: dict[str, str],
    output: Output,
) -> Iterator[Awake]:
    """A new actor, which is not saved yet. ``output`` takes what it writes to its standard output and error.

    Raises WasmetalError if the store has an actor of that id, or the actor cannot be made.
    """
    models: Mapping[str, str] = granting.models
    if not models and module.program.imports_models:
        models = {"default": DEFAULT_MODEL}
    with leased(store, actor_id) as lease:
        if actor_id in store.actors():
            raise SnapshotError(
                f"there is a snapshot of actor {actor_id} already: go on with `wasmetal actor thaw {actor_id}`, or "
                "give the new one another --id"
            )
        with (
            _granted(granting, models, output) as granted,
            Actor(module.program, id=actor_id, args=arguments, env=environment, **granted) as actor,
        ):
            yield Awake(actor, store, lease, module, saved=False, beside={})


@contextmanager
def thawed(store: Store, actor_id: str, program: Path | None, granting: Granting, output: Output) -> Iterator[Awake]:
    """The actor of a snapshot. ``program``: its program's file, by default the one that the store keeps.

    Raises WasmetalError if somebody has it awake, there is no snapshot of it, it is damaged, or something that it needs
    is missing or does not fit.
    """
    with leased(store, actor_id) as lease, ExitStack() as stack:
        with store.load(actor_id, lease) as stored:
            manifest = Manifest.from_json(stored.manifest)
            beside = {HOST: stored.manifest[HOST]} if HOST in stored.manifest else {}
            models = _models(actor_id, manifest.models, granting.models)
            _check_folders(actor_id, manifest.folders, granting.directories)
            module = Module.read(program) if program else _kept(store, actor_id, manifest)
            granted = stack.enter_context(_granted(granting, models, output))
            actor = stack.enter_context(Actor.thaw(Snapshot(manifest, stored), module.program, **granted))
        yield Awake(actor, store, lease, module, saved=True, beside=beside)


@contextmanager
def leased(store: Store, actor_id: str) -> Iterator[Lease]:
    """The actor's lease, which is renewed as long as it is needed, where leases run out."""
    with store.lease(actor_id) as lease:
        if not isinstance(store, UrlStore) or not isinstance(lease, UrlLease):
            yield lease
            return
        done = threading.Event()

        def renew(lease: UrlLease = lease, seconds: float = store.lease_seconds / 4) -> None:
            while not done.wait(seconds):
                with suppress(OSError, WasmetalError):  # what is lost, the next save says
                    lease.renew()

        thread = threading.Thread(target=renew, name=f"lease of {actor_id}", daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            done.set()
            thread.join()


def new_id(name: str) -> str:
    """A random id that begins with a name, as far as ids can have its characters."""
    beginning = re.sub("[^a-z0-9._-]+", "-", name.lower()).lstrip("._-")[:80]
    return f"{beginning or 'actor'}-{secrets.token_hex(4)}"


def _models(actor_id: str, recorded: Mapping[str, GrantedModel], given: Mapping[str, str]) -> dict[str, str]:
    """The models to grant again. What a name stood for is granted without being named if the catalogue has it."""
    from wasmetal.models.files.catalog import CATALOG

    models = dict(given)
    for name, model in recorded.items():
        if name in models:
            continue
        if model.name not in CATALOG:
            raise SnapshotError(
                f"actor {actor_id} was granted the model {printable(model.name)} as {printable(name)!r}: grant it "
                f"again with --model {printable(name)}=MODEL"
            )
        models[name] = model.name
    return models


def _check_folders(actor_id: str, recorded: Iterable[str], given: Container[str]) -> None:
    for name in recorded:
        if name not in given:
            raise SnapshotError(
                f"actor {actor_id} was granted a folder as {printable(name)!r}: grant it again, or another, with "
                f"--dir FOLDER::{printable(name)}"
            )


def _kept(store: Store, actor_id: str, manifest: Manifest) -> Module:
    """The program, from the store; or wasmetal's own, if it is that."""
    name, digest = printable(manifest.program_name), manifest.program_digest
    try:
        binary = kept_binary(store, digest)
    except SnapshotError as error:
        raise SnapshotError(f"{error}; name the file of {name} with --program") from error
    if binary is None:
        raise SnapshotError(
            f"the store does not keep the program of actor {actor_id}, {name} (SHA-256 {digest[:16]}…): name its file "
            "with --program"
        )
    return Module.kept(name, binary)


def kept_binary(store: Store, digest: str) -> bytes | None:
    """The module with this SHA-256, if the store keeps it or it is wasmetal's own. Raises SnapshotError."""
    binary = Programs(store).find(digest)
    if binary is None:
        with suppress(OSError):
            own = packaged.guest(PACKAGED).read_bytes()
            binary = own if digest_of_program(own) == digest else None
    return binary


@contextmanager
def _granted(granting: Granting, models: Mapping[str, str], output: Output) -> Iterator[dict[str, Any]]:
    """Arguments that :class:`Actor` and its ``thaw`` have in common."""
    arguments = {
        "models": models,
        "loading": granting.loading,
        "dirs": granting.directories,
        "limits": granting.limits,
        "stdout": output,
        "stderr": output,
    }
    if granting.precision is None:
        yield arguments | {"device": granting.device}
        return
    with open_device(granting.device, granting.precision) as device:
        yield arguments | {"device": device}
