"""What tests of actor hosts have in common: a guest that does what its messages say, and a host's sudden end."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from tests.actor.guests import MESSAGE, imports, wat
from wasmetal import ActorHost, ActorProgram, ActorType, Limits
from wasmetal.actor.hosting import PendingReply
from wasmetal.actor.store import DirectoryStore, Store

OBEDIENT = f"""(module {imports("message_read", "reply_write", "timer_set")}
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (global $n (mut i32) (i32.const 0))
  (data (i32.const 64) "file")
  {MESSAGE} (local $c i32)
    (i32.store8 (i32.const 1024) (i32.const 0))
    (drop (call $message_read (i32.const 1024) (i32.const 60000) (i32.const 0)))
    (local.set $c (i32.load8_u (i32.const 1024)))
    (global.set $n (i32.add (global.get $n) (select (i32.const 1) (i32.const 1000) (local.get $c))))
    (if (i32.eq (local.get $c) (i32.const 116 (; t ;))) (then unreachable))
    (if (i32.eq (local.get $c) (i32.const 108 (; l ;))) (then (loop (br 0))))
    (if (i32.eq (local.get $c) (i32.const 102 (; f ;)))
      (then (loop (drop (call $reply_write (i32.const 0) (i32.const 65536))) (br 0))))
    (if (i32.eq (local.get $c) (i32.const 98 (; b ;)))
      (then (drop (call $reply_write (i32.const 0) (i32.const 200000)))))
    (if (i32.eq (local.get $c) (i32.const 103 (; g ;))) (then (drop (memory.grow (i32.const 16)))))
    (if (i32.eq (local.get $c) (i32.const 115 (; s ;)))
      (then (drop (call $timer_set (i64.load (i32.const 1025))))))
    (if (i32.eq (local.get $c) (i32.const 111 (; o ;)))
      (then (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 1)
        (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 80)))))
    (if (i32.eq (local.get $c) (i32.const 112 (; p ;)))
      (then (i32.store (i32.const 32) (i32.const 1025)) (i32.store (i32.const 36) (i32.const 1))
        (drop (call $fd_write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 40)))))
    (i32.store (i32.const 16) (global.get $n))
    (drop (call $reply_write (i32.const 16) (i32.const 4)))))"""
"""Counts messages, and replies with their number as 4 bytes; a timer counts for 1000. A message that begins with

t traps, l never ends, f replies for ever, b replies with 200,000 bytes more, g grows the memory by 1 MiB, s sets the
timer (the 8 bytes that follow), o leaves a file open, p prints the byte that follows; any other only counts."""


@cache
def obedient() -> ActorProgram:
    """That program, compiled once."""
    return wat(OBEDIENT)


def kind(**options: Any) -> ActorType:
    """Its type."""
    return ActorType(program=obedient(), **{"limits": Limits(wall_seconds=30), **options})


def number(reply: PendingReply) -> int:
    """The number that it ends with."""
    return int.from_bytes(reply.read(60)[-4:], "little")


def count(host: ActorHost, actor_id: str, message: bytes = b"i", **options: Any) -> int:
    """Send a message, wait for the reply, and read its number."""
    return number(host.send(actor_id, message, **options))


def host_on(store: Store | Path, **options: Any) -> ActorHost:
    """A host of that program."""
    return ActorHost(
        DirectoryStore(store) if isinstance(store, Path) else store, options.pop("types", None) or kind(), **options
    )


def crash(host: ActorHost) -> None:
    """End a host as its process would end that is killed: without saving anything."""
    host._turns.close(RuntimeError("killed"))
    assert host._turns.join(30)
    for each in host.resident():
        host._residents.drop(each)
    host.close()


def tasks() -> int:
    """Threads of this process."""
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))
