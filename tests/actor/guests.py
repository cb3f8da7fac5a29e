"""Guests for tests of actors, in text, and one that does what the test says."""

from __future__ import annotations

from functools import cache
from typing import Any

import wasmtime

from tests.host.probe import Probe, probe_text
from wasmetal import Actor, ActorProgram
from wasmetal.host import abi

MESSAGE = '(func (export "wm_actor_message")'


def imports(*names: str) -> str:
    """Imports of functions of ``wasmetal_actor``, each called ``$name``."""
    kinds = abi.INTERFACES[abi.ACTOR]
    params = {name: " ".join("i64" if kind == abi.U64 else "i32" for kind in kinds[name]) for name in names}
    return "\n".join(
        f'(import "{abi.ACTOR}" "{name}" (func ${name} (param {params[name]}) (result i32)))' for name in names
    )


ECHO = f"""(module {imports("message_read", "reply_write", "message_sender", "actor_id")}
  (memory (export "memory") 1)
  {MESSAGE}
    (drop (call $message_read (i32.const 1024) (i32.const 60000) (i32.const 0)))
    (drop (call $reply_write (i32.const 1024) (i32.load (i32.const 0))))
    (drop (call $message_sender (i32.const 1024) (i32.const 60000) (i32.const 0)))
    (drop (call $reply_write (i32.const 1024) (i32.load (i32.const 0))))
    (drop (call $actor_id (i32.const 1024) (i32.const 60000) (i32.const 0)))
    (drop (call $reply_write (i32.const 1024) (i32.load (i32.const 0))))))"""
"""Replies with the message, the sender, and its own name, in three pieces."""

COUNTER = f"""(module {imports("reply_write")}
  (memory (export "memory") 2)
  (memory $own 1)
  (global $count (mut i32) (i32.const 0))
  (global $stack (mut i32) (i32.const 131056))
  (global $started (mut i32) (i32.const 0))
  (data (i32.const 0) "initial")
  (func $start (global.set $started (i32.add (global.get $started) (i32.const 1))))
  (start $start)
  {MESSAGE}
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (global.set $stack (i32.sub (global.get $stack) (i32.const 16)))
    (i32.store (global.get $stack) (global.get $count))
    (i32.store offset=4 (global.get $stack) (i32.load offset=16 (global.get $stack)))
    (i32.store offset=8 (global.get $stack) (global.get $started))
    (i32.store offset=12 (global.get $stack)
      (i32.store $own (i32.const 4) (i32.add (i32.load $own (i32.const 4)) (i32.const 10)))
      (i32.load $own (i32.const 4)))
    (drop (call $reply_write (global.get $stack) (i32.const 16)))))"""
"""Replies with four numbers: how many messages there were (from a private global), the number before it (through a
private stack pointer that never comes to rest), how often its start function has run, and ten times the number of
messages, from a memory of its own. The program needs two memories."""


def probe_actor_text(memory64: bool = False, extra: str = "") -> str:
    """A module that exports every host function, as ``Probe`` has it, and is an actor."""
    text = probe_text(memory64, 8, 64)
    return f"{text.rstrip()[:-1]} {MESSAGE}) {extra})"


@cache
def probe_program(memory64: bool = False) -> ActorProgram:
    """That module, compiled once for all actors of it."""
    return ActorProgram(bytes(wasmtime.wat2wasm(probe_actor_text(memory64))))


def probe(actor: Actor, memory64: bool = False) -> Probe:
    """The guest of such an actor, which does what the test says between two messages."""
    made = Probe.__new__(Probe)
    made.guest, made.memory64, made._entered = actor._guest, memory64, False
    return made


def wat(text: str, **options: Any) -> ActorProgram:
    """A program from text."""
    return ActorProgram(bytes(wasmtime.wat2wasm(text)), **options)
