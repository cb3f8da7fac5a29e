"""``wasmetal actor run``, ``thaw``, ``send``, ``freeze`` and ``fork``: actors awake for as long as the command runs."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.actor_options import (
    AtEnd,
    Granting,
    Id,
    JsonLines,
    KeyFile,
    NewId,
    ProgramAgain,
    ProgramFile,
    Sender,
    Where,
    granting_options,
    opened_store,
)
from wasmetal.cli.options import (
    Environment,
    Json,
    OptionError,
    pairs,
)
from wasmetal.cli.output import guest_output, print_json
from wasmetal.errors import SnapshotError, WasmetalError

if TYPE_CHECKING:
    from wasmetal.actor.guest import Reply
    from wasmetal.cli.awake import Awake

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[ARGS]...", help="The program's arguments.", show_default=False)
]


@granting_options
def run(
    *,
    program: ProgramFile,
    arguments: Arguments = None,
    actor_id: NewId = None,
    env: Environment = None,
    sender: Sender = "",
    save_at_end: AtEnd = False,
    granting: Granting,
    store: Where = None,
    key: KeyFile = None,
    as_json: JsonLines = False,
) -> None:
    """Make an actor, and send it messages: what is typed, or each line of standard input that is not empty.

    Replies go to standard output, and what the actor itself writes there to standard error. The actor is saved when it
    has begun, and after every message; so it is there when the command has ended, however it ends, for `wasmetal actor
    thaw` and `send` to go on with. A timer that is due is delivered before the next message. A program that can use
    models is granted smollm2:135m as default, unless --model grants others.

    Options of wasmetal must come before PROGRAM; everything after it is passed to the actor.
    """
    with _new(program, arguments, actor_id, env, granting, store, key) as awake:
        if not save_at_end:
            awake.save()
        if actor_id is None:
            print(f"actor {awake.id}", file=sys.stderr, flush=True)
        _converse(awake, sender, save_at_end, as_json)


@granting_options
def thaw(
    *,
    actor_id: Id,
    program: ProgramAgain = None,
    sender: Sender = "",
    save_at_end: AtEnd = False,
    granting: Granting,
    store: Where = None,
    key: KeyFile = None,
    as_json: JsonLines = False,
) -> None:
    """Thaw an actor where it was, and send it messages as `wasmetal actor run` does.

    As long as the command runs, it holds the actor's lease: nobody else can thaw it. What the actor was granted must be
    granted again: folders with --dir, and models with --model, but for those that wasmetal itself knows by name.
    """
    from wasmetal.cli.awake import thawed

    with thawed(opened_store(store, key), actor_id, program, granting, guest_output(sys.stderr)) as awake:
        _converse(awake, sender, save_at_end, as_json)


@granting_options
def send(
    *,
    actor_id: Id,
    message: Annotated[
        str | None,
        typer.Argument(metavar="[MESSAGE]", help="The message  [default: all of standard input]", show_default=False),
    ] = None,
    timer: Annotated[
        bool, typer.Option("--timer", help="Deliver the message that the actor's timer is due, in place of another.")
    ] = False,
    program: ProgramAgain = None,
    sender: Sender = "",
    granting: Granting,
    store: Where = None,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Thaw an actor, send it one message, print the reply as it is made, and save it.

    If anything fails, or the reply cannot be printed to its end, the actor in the store is as it was before. What the
    actor was granted must be granted again, as for `wasmetal actor thaw`.
    """
    from wasmetal.cli.awake import thawed

    if timer and message is not None:
        raise OptionError("--timer delivers the timer's message: give no other")
    data: bytes | None = None
    if not timer:
        data = sys.stdin.buffer.read() if message is None else message.encode("utf-8", "surrogateescape")
    with thawed(opened_store(store, key), actor_id, program, granting, guest_output(sys.stderr)) as awake:
        printed = Printed(as_json, line=sys.stdout.isatty())
        printed.answer(awake, data, sender)
        awake.save()
    if as_json:
        print_json({"actor": actor_id, **printed.json()})


@granting_options
def freeze(
    *,
    program: ProgramFile,
    arguments: Arguments = None,
    actor_id: NewId = None,
    env: Environment = None,
    granting: Granting,
    store: Where = None,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Make an actor, save it before its first message, and print its id.

    It has run its start functions, and `wasmetal actor send`, `thaw` and `fork` go on from there. (An actor that is
    awake in `run` or `thaw` is frozen by these themselves.) Options of wasmetal must come before PROGRAM.
    """
    with _new(program, arguments, actor_id, env, granting, store, key) as awake:
        awake.save()
    if as_json:
        print_json({"actor": awake.id})
    else:
        print(awake.id)


def fork(
    actor_id: Id,
    new: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NEW]...", help="Ids of forks  [default: one, with a random id]", show_default=False),
    ] = None,
    store: Where = None,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Fork an actor as it was saved last, without waking it, and print the forks' ids.

    A fork has a name and a random generator of its own, and shares all that is stored with the actor. Neither the
    program nor a model is needed.
    """
    from wasmetal.actor.store import checked_id
    from wasmetal.actor.stored_fork import fork_stored
    from wasmetal.cli.awake import new_id

    opened = opened_store(store, key)
    names = [checked_id(name) for name in new or [new_id(actor_id)]]
    if taken := set(names) & set(opened.actors()):  # before the first of them is made
        raise SnapshotError(f"there is a snapshot of actor {min(taken)} already: fork to another id, or delete it")
    for name in names:
        fork_stored(opened, actor_id, name)
        if not as_json:
            print(name)
    if as_json:
        print_json({"actor": actor_id, "forks": names})


@contextmanager
def _new(
    program: Path,
    arguments: list[str] | None,
    actor_id: str | None,
    env: list[str] | None,
    granting: Granting,
    store: str | None,
    key: Path | None,
) -> Iterator[Awake]:
    """A new actor of the store, which is not saved yet."""
    from wasmetal.cli.awake import Module, made, new_id

    module, opened = Module.read(program), opened_store(store, key, create=True)
    name = actor_id or new_id(Path(module.program.name).stem)
    output, environment = guest_output(sys.stderr), dict(pairs(env, "=", "KEY=VALUE"))
    with made(opened, name, module, granting, arguments or [], environment, output) as awake:
        yield awake


# ---- Messages and replies


class Printed:
    """Replies, printed as they are made, or kept for JSON."""

    def __init__(self, as_json: bool, *, line: bool) -> None:
        """``line``: a reply ends with a newline, also if the actor writes none."""
        self._as_json, self._line = as_json, line
        self._reply = b""
        self._seconds = 0.0

    def answer(self, awake: Awake, message: bytes | None, sender: str) -> None:
        """Send a message, or None for the timer's, and print the reply.

        Raises WasmetalError if the actor fails: then it cannot be saved.
        """
        begin = time.perf_counter()
        pieces = []
        out = guest_output(sys.stdout)
        try:
            reply: Reply = awake.actor.wake() if message is None else awake.actor.send(message, sender)
            for piece in reply:
                if self._as_json:
                    pieces.append(piece)
                    continue
                out(piece)
                pieces[:] = [piece]
        except WasmetalError as error:
            raise type(error)(f"{error}; {_left(awake)}") from error
        except KeyboardInterrupt:
            print(f"\n{_left(awake)}", file=sys.stderr)
            raise
        if self._line and not self._as_json and not b"".join(pieces).endswith(b"\n"):
            out(b"\n")
        self._reply, self._seconds = b"".join(pieces), time.perf_counter() - begin

    def json(self) -> dict[str, object]:
        """The reply: as text, where what is no UTF-8 is replaced, and as it is; and the seconds that it took."""
        return {
            "reply": self._reply.decode(errors="replace"),
            "reply_base64": base64.b64encode(self._reply).decode(),
            "seconds": self._seconds,
        }


def _left(awake: Awake) -> str:
    """What remains of an actor that cannot go on."""
    return f"actor {awake.id} " + ("stays as it was saved last" if awake.saved else "was not saved")


def _converse(awake: Awake, sender: str, save_at_end: bool, as_json: bool) -> None:
    """Send messages until there are no more, and save the actor."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        print(f"actor {awake.id}; each line is a message, Alt-Enter begins another line of it, Ctrl-D leaves")
    printed = Printed(as_json, line=True)
    for message in _with_timers(awake, _typed() if at_terminal else _lines()):
        printed.answer(awake, message, sender)
        if not save_at_end:
            awake.save()
        if as_json:
            print(json.dumps({"actor": awake.id, "timer": message is None, **printed.json()}), flush=True)
    if save_at_end:
        awake.save()


def _with_timers(awake: Awake, messages: Iterator[bytes]) -> Iterator[bytes | None]:
    """The messages; before one of them None, if the actor's timer is due by then."""
    for message in messages:
        if awake.actor.due is not None and awake.actor.due <= time.time():
            yield None
        yield message


def _lines() -> Iterator[bytes]:
    """The lines of standard input that are not empty."""
    for line in sys.stdin.buffer:
        if text := line.rstrip(b"\r\n"):
            yield text


def _typed() -> Iterator[bytes]:
    """What is typed at a terminal."""
    from wasmetal.cli.prompt import prompt_reader
    from wasmetal.home import home

    read = prompt_reader(home() / "actor-history")
    while True:
        try:
            text = read()
        except EOFError:
            return
        if text.strip():
            yield text.encode(errors="surrogateescape")
