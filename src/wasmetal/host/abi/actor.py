"""The interface ``wasmetal_actor``, described."""

from __future__ import annotations

from wasmetal.documented import Documented
from wasmetal.host.abi.errors import Errno
from wasmetal.host.abi.schema import (
    CHAR,
    SIZE_T,
    UINT32,
    UINT64,
    VOID,
    Enumeration,
    Field,
    Function,
    Interface,
    Param,
    Struct,
    reads,
    returns,
    writes,
)


class MessageKind(Documented):
    """Why wm_actor_message was called."""

    SENT = 0, "Somebody has sent a message."
    TIMER = 1, "The time set with wm_timer_set has come. The message is empty, and nobody sent it."


MESSAGE_KIND = Enumeration("message_kind", MessageKind, "MESSAGE_")
MESSAGE_INFO = Struct(
    "message_info",
    "The message that the actor is handling.",
    (
        Field("kind", MESSAGE_KIND, "WM_MESSAGE_*"),
        Field("reserved", UINT32),
        Field("length", UINT64, "of the message, in bytes"),
    ),
)

_CAP, _LENGTH = Param("cap", SIZE_T), returns("len", SIZE_T)
_OUTSIDE = {Errno.NOTSUP: "", Errno.INVAL: "no message is being handled"}

ACTOR = Interface(
    "wasmetal_actor",
    "ACTOR",
    """
    Messages for a guest that is run as an actor. Such a guest exports `void wm_actor_message(void)`, which the host
    calls for each message, one at a time, and may export `void wm_actor_start(void)`, which it calls once, before the
    first message (after `_initialize`, if the guest exports that; `_start` is not called).

    Between two messages no code of the guest runs, and the host may freeze it: memory, globals, tables, handles,
    sessions and buffers are as they were when it is thawed, in whatever process and on whatever device. What cannot be
    frozen must be gone by the time wm_actor_message returns: submissions that were not waited for, and open files.

    If wm_actor_message traps or exits, the actor has failed and is not called again.
    """,
    (
        MESSAGE_KIND,
        MESSAGE_INFO,
        Function("message_describe", (returns("info", MESSAGE_INFO),), "The message that is being handled.", _OUTSIDE),
        Function(
            "message_read",
            (writes("out", VOID), _CAP, _LENGTH),
            "The message's bytes. cap and *len count bytes.",
            {**_OUTSIDE, Errno.OVERFLOW: ""},
        ),
        Function(
            "message_sender",
            (writes("out", CHAR), _CAP, _LENGTH),
            "Who has sent the message, as the host says; empty if it does not. cap and *len count bytes.",
            {**_OUTSIDE, Errno.OVERFLOW: ""},
        ),
        Function(
            "reply_write",
            (reads("data", VOID), Param("len", SIZE_T)),
            """
            Gives the sender the next piece of the reply: at once, so that a reply can be read while it is made. The
            call waits if the sender is far behind.
            """,
            {**_OUTSIDE, Errno.TOOBIG: ""},
        ),
        Function(
            "actor_id",
            (writes("out", CHAR), _CAP, _LENGTH),
            "The actor's own name, which is not that of the actor it was forked from. cap and *len count bytes.",
            {Errno.NOTSUP: "", Errno.OVERFLOW: ""},
        ),
        Function(
            "timer_set",
            (Param("delay_ns", UINT64),),
            """
            Asks for a message of the kind WM_MESSAGE_TIMER in delay_ns nanoseconds, or as soon as possible after that;
            the time goes on while the actor is frozen. An actor has one timer: this replaces what was set before.
            WM_FOREVER: no message.
            """,
            {Errno.NOTSUP: "", Errno.INVAL: "more than 2^62 ns, and not WM_FOREVER"},
        ),
        Function(
            "random_fill",
            (writes("out", VOID), Param("len", SIZE_T)),
            """
            Random bytes from the actor's own generator, whose state is frozen with the actor: once thawed, it goes on
            with the same bytes. WASI's random_get gives the next bytes of the same generator. A fork gets a generator
            of its own.
            """,
            {Errno.NOTSUP: "", Errno.TOOBIG: ""},
        ),
    ),
)
