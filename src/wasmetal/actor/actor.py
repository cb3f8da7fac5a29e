"""Actors: guests that handle messages one by one, and that can be frozen, thawed and forked between two of them."""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from wasmetal.actor.capture import capture
from wasmetal.actor.chunks import ChunkSink, ChunkSource, MemoryChunks
from wasmetal.actor.forking import FromActor
from wasmetal.actor.grants import Grants
from wasmetal.actor.guest import ActorGuest, Reply
from wasmetal.actor.json_fields import text
from wasmetal.actor.manifest import MAX_NAME, Manifest, check_texts
from wasmetal.actor.program import ActorProgram
from wasmetal.actor.restore import Contents, FromChunks, check, check_names, restore
from wasmetal.closing import Closing
from wasmetal.counters import Counters
from wasmetal.device import Device
from wasmetal.errors import GuestError, LimitError, SnapshotError
from wasmetal.host import abi, wasi
from wasmetal.host.errno import Refusal
from wasmetal.host.functions.actor import Mailbox
from wasmetal.host.grants import Dir
from wasmetal.host.limits import Limits
from wasmetal.host.program import Program
from wasmetal.host.randomness import RandomStream
from wasmetal.host.tokens import TokenCounts

if TYPE_CHECKING:
    from wasmetal.models.loaded import LoadedModel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen actor."""

    manifest: Manifest
    chunks: ChunkSource
    """Where the bytes are."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What is given to an actor that is no part of its state."""

    limits: Limits
    stdout: wasi.Output | None
    stderr: wasi.Output | None


class Actor(Closing):
    """A guest that handles messages. Use it as a context manager, or call :meth:`close`.

    ::

        program = wasmetal.ActorProgram("guests/chat.wasm")
        with wasmetal.Actor(program, models={"default": "smollm2:135m"}) as actor:
            print(actor.send("Why is the sky blue?").read().decode())
            snapshot = actor.freeze()
        with wasmetal.Actor.thaw(snapshot, program, models={"default": "smollm2:135m"}) as actor:
            print(actor.send("And at night?").read().decode())

    It handles one message at a time, on its own thread. Where it traps, exits, or reaches a limit, it has failed: it
    handles no further message and cannot be frozen, but its earlier snapshots can be thawed.
    """

    _chunks: weakref.ref[MemoryChunks] | None = None
    """Of the latest snapshot in memory that the actor was frozen to or thawed from."""

    def __init__(
        self,
        program: ActorProgram | str | Path | bytes,
        *,
        id: str | None = None,
        device: str | Device | None = None,
        models: Mapping[str, str | Path | LoadedModel] | None = None,
        loading: Mapping[str, Any] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        dirs: Mapping[str, str | Path | Dir] | None = None,
        limits: Limits | None = None,
        stdout: wasi.Output | None = None,
        stderr: wasi.Output | None = None,
    ) -> None:
        """Make an actor, and run its start function, ``_initialize`` and ``wm_actor_start``, if it has these.

        ``program``: one that any number of actors share; or the path or bytes of a module, for this actor alone.
        ``id``: the actor's name, which its guest can read; by default a random one.
        ``device``, ``models``, ``loading``, ``args``, ``env``, ``dirs``, ``limits``, ``stdout``, ``stderr``: as for
        :class:`Guest`. ``limits.wall_seconds`` is the time that each message may take. Arguments and environment are
        part of the actor's state; limits and streams are not, nor is anything that is granted.

        Raises what :class:`Guest` does, and GuestError if ``id`` is empty or too long.
        """
        program = _program(program)
        try:
            check_texts(args, env or {}, [*(models or {}), *(dirs or {})])
        except SnapshotError:
            raise GuestError(
                "no snapshot could hold these: an actor's arguments and variables are text of at most 1 MiB each, and "
                "the names of what it is granted of 4096 bytes, without zeros"
            ) from None
        grants = Grants(program, device, models or {}, loading or {}, dirs or {})
        try:
            self._make(
                program,
                Mailbox(_name(id), RandomStream(secrets.token_bytes(32))),
                grants,
                _Settings(limits or Limits(), stdout, stderr),
                tuple(args),
                dict(env or {}),
            )
        finally:
            grants.leave()
        try:
            self._guest.start()
        except BaseException:
            self.close()
            raise

    @classmethod
    def thaw(
        cls,
        snapshot: Snapshot,
        program: ActorProgram | str | Path | bytes,
        *,
        device: str | Device | None = None,
        models: Mapping[str, str | Path | LoadedModel] | None = None,
        loading: Mapping[str, Any] | None = None,
        dirs: Mapping[str, str | Path | Dir] | None = None,
        limits: Limits | None = None,
        stdout: wasi.Output | None = None,
        stderr: wasi.Output | None = None,
    ) -> Self:
        """The actor that was frozen, as it was: the same name, memory, handles, sessions and random bytes to come.

        What it was granted must be granted again, under the same names: the same models, in whatever way, on whatever
        device; and folders, whichever these are now. None of its code runs.

        Raises SnapshotError if the program, a model or a limit does not fit, a grant is missing, or a chunk is missing
        or damaged; LimitError, OutOfDeviceMemoryError and what :class:`Guest` raises.
        """
        program = _program(program)
        manifest = snapshot.manifest
        check_names(manifest, program, models or {}, dirs or {})
        grants = Grants(program, device, models or {}, loading or {}, dirs or {})
        try:
            settings = _Settings(limits or Limits(), stdout, stderr)
            check(manifest, program, grants, settings.limits)
            random = RandomStream(bytes.fromhex(manifest.random_seed), manifest.random_position)
            contents = FromChunks(manifest, snapshot.chunks, grants.device)
            actor = cls._restored(program, Mailbox(manifest.actor, random), grants, settings, manifest, contents)
            if isinstance(snapshot.chunks, MemoryChunks):
                actor._chunks = weakref.ref(snapshot.chunks)
            return actor
        finally:
            grants.leave()

    def freeze(self) -> Snapshot:
        """The actor's state, in this process's memory. The actor stays as it is, and can go on.

        What has not changed since the snapshot before it is shared with that, if it was in memory and still exists.
        Raises SnapshotError if it handles a message or has failed, and if it holds something that cannot be frozen: an
        open file, or a submission that it has not waited for. Raises GuestError if it is closed.
        """
        earlier = self._chunks() if self._chunks else None
        chunks = MemoryChunks(earlier)
        snapshot = Snapshot(self.freeze_into(chunks), chunks)
        self._chunks = weakref.ref(chunks)
        return snapshot

    def freeze_into(self, sink: ChunkSink) -> Manifest:
        """Like :meth:`freeze`, with the bytes given to ``sink``. Raises what that does, too.

        What has not changed since the actor was frozen or thawed last is not read again if the sink has it.
        """
        return self._quietly("frozen", lambda: capture(self._guest, sink))

    def fork(self, id: str | None = None) -> Self:
        """A new actor in the same state, which from now on goes its own way.

        It has a name (``id``, by default a random one) and a random generator of its own; limits, streams and grants
        are the same. Sessions share pages of the KV cache until one of the two writes to them; so do the memories of
        forks where the system and the device allow it, and otherwise what differs from the program's initial memory is
        copied. What was copied is counted in the fork's ``bytes_copied``. The two have one share of each KV cache
        between them, until both are closed.

        Raises what :meth:`freeze` and :meth:`thaw` do.
        """
        return self._quietly("forked", lambda: self._forked(_name(id)))

    def send(self, message: bytes | str, sender: str = "") -> Reply:
        """Begin to handle a message; return the reply, whose pieces can be read as they are made.

        ``sender``: what the actor is told of who has sent it. The message is handled on the actor's own thread, whether
        or not the reply is read; but an actor that writes many pieces waits for the reader.

        Raises GuestError if the actor handles another message, has failed, or is closed.
        """
        data = message.encode() if isinstance(message, str) else bytes(message)
        return self._guest.handle(data, sender, abi.MessageKind.SENT)

    @property
    def due(self) -> float | None:
        """When the actor's timer is due, in seconds since 1970; None if it is not set."""
        due = self._guest.mailbox.due
        return None if due is None else due / 1e9

    def wake(self) -> Reply:
        """Give the actor the message that its timer is due. Nobody else does that: see :attr:`due`.

        Raises what :meth:`send` does, and GuestError if the timer is not due.
        """
        mailbox = self._guest.mailbox
        due = mailbox.due
        if due is None or due > time.time_ns():
            raise GuestError("the actor's timer is not due")
        mailbox.due = None
        try:
            return self._guest.handle(b"", "", abi.MessageKind.TIMER)
        except BaseException:
            mailbox.due = due
            raise

    @property
    def id(self) -> str:
        """The actor's name."""
        return self._guest.mailbox.name

    @property
    def busy(self) -> bool:
        """Whether it handles a message."""
        return self._guest.busy

    @property
    def failure(self) -> BaseException | None:
        """Why it handles no messages any more; None if it does."""
        return self._guest.failure

    @property
    def counters(self) -> Counters:
        """What it has caused, before it was frozen too."""
        return self._guest.counters

    @property
    def token_counts(self) -> TokenCounts:
        """What it has had its language models read and choose since it was made or thawed."""
        return self._guest.token_counts

    @property
    def memory_bytes(self) -> int:
        """Bytes of its linear memories; those that were never written to take no room."""
        return sum(region.size for region in self._guest.state.regions)

    @property
    def device_bytes(self) -> int:
        """Device memory of its buffers and its pages of the KV cache; a fork's pages are its first ancestor's."""
        return self._guest.account.device_bytes

    def stop(self) -> None:
        """Stop it, from another thread: it has failed then, in the middle of a message if it handles one."""
        self._guest.stop()

    def close(self) -> None:
        """Stop it and release everything it holds; what is not frozen is lost. Idempotent."""
        self._guest.close()

    def _forked(self, name: str) -> Self:
        guest = self._guest
        manifest, contents = capture(guest, None), FromActor(guest)
        mailbox = Mailbox(name, guest.mailbox.random.derive(name))
        fork = self._restored(guest.program, mailbox, guest.grants, self._settings, manifest, contents, guest)
        fork._guest.fork_images.adopt(contents.images)
        fork.counters.bytes_copied += contents.copied
        fork._chunks = self._chunks
        return fork

    @classmethod
    def _restored(
        cls,
        program: ActorProgram,
        mailbox: Mailbox,
        grants: Grants,
        settings: _Settings,
        manifest: Manifest,
        contents: Contents,
        parent: ActorGuest | None = None,
    ) -> Self:
        """A new actor in a manifest's state. ``parent``: the guest that it is a fork of."""
        actor = cls.__new__(cls)
        actor._make(program, mailbox, grants, settings, manifest.arguments, dict(manifest.environment), parent)
        try:
            actor._guest.quietly(lambda: restore(actor._guest, manifest, contents))
        except Refusal as refusal:
            actor.close()
            raise LimitError(str(refusal)) from None
        except BaseException:
            actor.close()
            raise
        return actor

    def _make(
        self,
        program: ActorProgram,
        mailbox: Mailbox,
        grants: Grants,
        settings: _Settings,
        arguments: tuple[str, ...],
        environment: dict[str, str],
        parent: ActorGuest | None = None,
    ) -> None:
        self._settings = settings
        self._guest = ActorGuest(
            program,
            mailbox,
            grants,
            arguments=arguments,
            environment=environment,
            limits=settings.limits,
            stdout=settings.stdout,
            stderr=settings.stderr,
            parent=parent,
        )

    def _quietly(self, what: str, function: Callable[[], T]) -> T:
        """Call a function while none of the actor's code runs."""
        guest = self._guest
        if guest.busy:
            raise SnapshotError(f"the actor cannot be {what}: it is handling a message")
        if guest.failure:
            raise SnapshotError(f"the actor cannot be {what}: it has failed: {guest.failure}")
        return guest.quietly(function)


def _program(program: ActorProgram | str | Path | bytes) -> ActorProgram:
    if isinstance(program, Program):
        if not isinstance(program, ActorProgram):
            raise GuestError(f"{program.name} was compiled for guests: make an ActorProgram of the module instead")
        return program
    return ActorProgram(program)


def _name(id: str | None) -> str:
    if id is None:
        return secrets.token_hex(16)
    try:
        name = text("its name", id, MAX_NAME)
    except SnapshotError:
        name = ""
    if not name:
        raise GuestError(f"an actor's id is 1 to {MAX_NAME} bytes of text; this one is {id!r:.300}")
    return name
