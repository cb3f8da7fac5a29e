"""The guest of an actor: one that handles messages, and whose state can be reached while none of its code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import wasmtime

from wasmetal.actor.fork_image import ForkImages
from wasmetal.actor.frozen import Frozen
from wasmetal.actor.grants import Grants
from wasmetal.actor.instance import Instance
from wasmetal.actor.program import BEGIN, INITIALIZE, MESSAGE, ActorProgram
from wasmetal.actor.wasm_exports import START
from wasmetal.errors import GuestError, GuestTrapError
from wasmetal.host import abi, wasi
from wasmetal.host.account import Account
from wasmetal.host.descriptors import Descriptors
from wasmetal.host.functions.actor import Mailbox, Message
from wasmetal.host.functions.gpu import Gpu
from wasmetal.host.functions.llm import Llm
from wasmetal.host.grants import Granted
from wasmetal.host.guest import Guest
from wasmetal.host.guest_thread import GuestThread
from wasmetal.host.handles import Handles
from wasmetal.host.limits import Limits
from wasmetal.host.link import CLOCKS, RANDOM
from wasmetal.host.randomness import Randomness
from wasmetal.host.streams import Output, Pipe
from wasmetal.host.wasm import describe_trap, exited, one_line

T = TypeVar("T")


class Reply:
    """The pieces of an actor's reply, as the actor writes them; an iterator.

    A reply that is closed or dropped before its end is lost, but the message is handled to its end all the same.
    """

    def __init__(self, pipe: Pipe, call: GuestThread[None], end: Callable[[GuestThread[None]], None]) -> None:
        self._pipe = pipe
        self._call: GuestThread[None] | None = call
        self._end = end
        self._pieces = pipe.pieces(call.alive)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next piece. At the end, raises what has gone wrong: GuestTrapError, LimitError, GuestError."""
        for piece in self._pieces:
            return piece
        if call := self._call:
            self._call = None
            self._end(call)
        raise StopIteration

    def read(self) -> bytes:
        """All that is left of the reply, waiting for its end. Raises what :meth:`__next__` does."""
        return b"".join(self)

    def close(self) -> None:
        """Read no more. Idempotent."""
        self._pipe.unread = True

    def __del__(self) -> None:
        self._pipe.unread = True


class ActorGuest(Guest):
    """An instance of an actor's program. Nothing of its code has run when it is made."""

    def __init__(
        self,
        program: ActorProgram,
        mailbox: Mailbox,
        grants: Grants,
        *,
        arguments: tuple[str, ...],
        environment: dict[str, str],
        limits: Limits,
        stdout: wasi.Output | None,
        stderr: wasi.Output | None,
        parent: ActorGuest | None = None,
    ) -> None:
        """``parent``: the guest that this one is to be a fork of. Raises what :class:`Guest` does."""
        self.program = program
        self.arguments, self.environment = arguments, environment
        self.mailbox = mailbox
        self.grants = grants
        self.frozen = Frozen()
        """What it held when it was frozen or thawed last."""
        self.fork_images = ForkImages()
        """What its memories have in common with those of other actors."""
        self._parent = parent
        super().__init__(
            program,
            device=grants.device,
            models=grants.models,
            args=arguments,
            env=environment,
            dirs=grants.folders,
            limits=limits,
            stdout=stdout,
            stderr=stderr,
        )
        self._parent = None
        self._cleanup.callback(self.fork_images.clear)
        try:
            self.state = Instance(program, self._store, self._instance)
            """Its memories, globals and tables."""
        except BaseException:
            self.close()
            raise

    # ---- What the guest is made of, for those who freeze and thaw it on its thread

    @property
    def account(self) -> Account:
        """What it has used."""
        return self._account

    @property
    def handles(self) -> Handles:
        """What it holds."""
        return self._handles

    @property
    def descriptors(self) -> Descriptors:
        """Its streams, folders and open files."""
        return self._descriptors

    @property
    def stdout(self) -> Output:
        """Its standard output."""
        return self._stdout

    @property
    def clocks(self) -> wasi.Clocks:
        """Its clocks."""
        return cast(wasi.Clocks, self._context.interfaces[CLOCKS])

    @property
    def gpu(self) -> Gpu:
        """Its buffers; there are some only if it uses a device."""
        return cast(Gpu, self._context.interfaces[abi.GPU])

    @property
    def llm(self) -> Llm | None:
        """Its sessions; None if it uses no device."""
        return cast("Llm | None", self._context.interfaces.get(abi.LLM))

    def quietly(self, function: Callable[[], T]) -> T:
        """Call a function of the host's on the guest's thread, while none of its code runs.

        Raises GuestError if the guest runs, has failed, or is closed.
        """
        return self._calls.enter(function)

    # ---- Messages

    @property
    def busy(self) -> bool:
        """Whether a message is being handled."""
        return self._calls.busy

    @property
    def failure(self) -> BaseException | None:
        """Why no code of the guest runs any more; None if it can."""
        return self._interrupt.reason

    def start(self) -> None:
        """Run what an actor runs once, before its first message. Raises what :meth:`Reply.__next__` does."""
        exports = self._instance.exports(self._store)
        functions = [exports[name] for name in (START, INITIALIZE, BEGIN) if name in exports]

        def run() -> None:
            for function in functions:
                self._call_function(cast(wasmtime.Func, function))

        self._calls.enter(run)

    def handle(self, data: bytes, sender: str, kind: abi.MessageKind) -> Reply:
        """Begin to handle a message. Raises GuestError if another one is being handled, or the guest cannot go on."""
        pipe = Pipe(self._interrupt)
        function = self._function(MESSAGE)

        def run() -> None:
            self.mailbox.message = Message(data, sender, kind, pipe.write)
            try:
                self._call_function(function)
            finally:
                self.mailbox.message = None
                pipe.finish()

        return Reply(pipe, self._calls.begin(run), self._calls.end)

    def _call_function(self, function: wasmtime.Func) -> None:
        """Call it to its end. If it ends in any other way, the guest has failed, and none of its code runs again."""
        try:
            function(self._store)
        except BaseException as error:
            self._interrupt.stop(_failure(error))
            raise

    def _own_interfaces(self) -> dict[str, object]:
        return {RANDOM: Randomness(self._interrupt, self.mailbox.random), abi.ACTOR: self.mailbox}

    def _family(self) -> Llm | None:
        return self._parent.llm if self._parent else None

    def _give(self, granted: Granted) -> None:
        self.grants.join()
        self._cleanup.callback(self.grants.leave)
        super()._give(granted)


def _failure(error: BaseException) -> BaseException:
    match error:
        case wasmtime.Trap():
            return GuestTrapError(describe_trap(error))
        case wasmtime.ExitTrap():
            return exited(error.code)
        case wasmtime.WasmtimeError():
            return GuestError(one_line(error))
    return error
