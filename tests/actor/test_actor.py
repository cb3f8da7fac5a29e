"""Actors handle messages, one at a time: replies in pieces, senders, timers, random bytes, and failures."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.actor.guests import ECHO, MESSAGE, imports, wat
from wasmetal import Actor, ActorProgram, Guest, Limits, Program
from wasmetal.errors import GuestError, GuestTrapError, LimitError, SnapshotError
from wasmetal.host.randomness import RandomStream
from wasmetal.sdk import INCLUDE


def test_a_message_is_answered_in_pieces() -> None:
    with Actor(wat(ECHO), id="ann") as actor:
        assert list(actor.send("héllo", sender="bob")) == ["héllo".encode(), b"bob", b"ann"]
        assert actor.send(b"\x00\xff").read() == b"\x00\xffann"
        assert actor.id == "ann"


def test_actors_of_a_program_share_nothing_but_its_code() -> None:
    text = f"""(module {imports("reply_write")} (memory (export "memory") 1)
        {MESSAGE} (i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1)))
        (drop (call $reply_write (i32.const 0) (i32.const 1)))))"""
    program = wat(text)
    with Actor(program) as a, Actor(program) as b:
        assert [a.send("").read(), a.send("").read(), b.send("").read()] == [b"\1", b"\2", b"\1"]
        assert a.id != b.id


def test_the_functions_that_run_first() -> None:
    text = f"""(module {imports("reply_write")} (memory (export "memory") 1) (global $n (mut i32) (i32.const 0))
      (func $add (param i32)
        (i32.store8 (global.get $n) (local.get 0)) (global.set $n (i32.add (global.get $n) (i32.const 1))))
      (func $s (call $add (i32.const 115))) (start $s)
      (func (export "_initialize") (call $add (i32.const 105)))
      (func (export "wm_actor_start") (call $add (i32.const 97)))
      (func (export "_start") unreachable)
      {MESSAGE} (drop (call $reply_write (i32.const 0) (global.get $n)))))"""
    with Actor(wat(text)) as actor:
        assert actor.send("").read() == b"sia"
        snapshot = actor.freeze()
        with Actor.thaw(snapshot, wat(text)) as thawed:
            assert thawed.send("").read() == b"sia"  # they do not run again


def test_a_message_is_handled_though_nobody_reads_the_reply() -> None:
    # More pieces than can wait for a reader.
    text = f"""(module {imports("reply_write")} (memory (export "memory") 1) (global $n (mut i32) (i32.const 0))
      {MESSAGE} (local $i i32)
        (global.set $n (i32.add (global.get $n) (i32.const 1)))
        (i32.store (i32.const 0) (global.get $n))
        (loop (drop (call $reply_write (i32.const 0) (i32.const 4)))
          (br_if 0 (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 500))))))"""
    with Actor(wat(text)) as actor:
        actor.send("")
        closed = None
        for _ in range(2):
            while actor.busy:
                time.sleep(0.01)
            closed = actor.send("")
            assert next(closed) != b""
            closed.close()
        while actor.busy:
            time.sleep(0.01)
        assert actor.send("").read() == (4).to_bytes(4, "little") * 500


def test_one_message_at_a_time() -> None:
    with Actor(wat(ECHO), stdout=None) as actor:
        reply = actor.send("first")
        # The reply of three pieces fits between actor and reader, so that the message may have ended: wait for it.
        assert reply.read().startswith(b"first")
        assert actor.send("second").read().startswith(b"second")
    text = f'(module (memory (export "memory") 1) {MESSAGE} (loop (br 0))))'
    with Actor(wat(text)) as actor:
        reply = actor.send("")
        with pytest.raises(GuestError, match="running already"):
            actor.send("")
        with pytest.raises(SnapshotError, match="cannot be frozen: it is handling a message"):
            actor.freeze()
        with pytest.raises(SnapshotError, match="cannot be forked: it is handling a message"):
            actor.fork()
        threading.Timer(0.1, actor.stop).start()
        with pytest.raises(GuestError, match="stopped"):
            reply.read()


@pytest.mark.parametrize(
    ("body", "error", "why"),
    [
        ("unreachable", GuestTrapError, "unreachable"),
        ("(call $exit (i32.const 3))", GuestError, "exit code 3"),
        ("(call $exit (i32.const 0))", GuestError, "exit code 0"),
        ("(loop (br 0))", LimitError, "wall time"),
    ],
)
def test_an_actor_that_fails_handles_no_more_messages(body: str, error: type[GuestError], why: str) -> None:
    text = f"""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) {MESSAGE} {body}))"""
    with Actor(wat(text), limits=Limits(wall_seconds=0.2)) as actor:
        before = actor.freeze()
        with pytest.raises(error, match=why):
            actor.send("").read()
        assert actor.failure
        with pytest.raises(GuestError, match=f"cannot go on.*{why}"):
            actor.send("")
        with pytest.raises(SnapshotError, match=f"it has failed.*{why}"):
            actor.freeze()
        Actor.thaw(before, wat(text)).close()


def test_what_fails_at_the_start_is_raised() -> None:
    with pytest.raises(GuestTrapError, match="unreachable"):
        Actor(wat(f'(module (memory (export "memory") 1) (func $s unreachable) (start $s) {MESSAGE}))'))


def test_the_timer_is_a_message_to_come() -> None:
    text = f"""(module {imports("timer_set", "message_describe", "reply_write", "message_read")}
        (memory (export "memory") 1)
        {MESSAGE}
          (drop (call $message_describe (i32.const 0)))
          (drop (call $reply_write (i32.const 0) (i32.const 16)))
          (drop (call $message_read (i32.const 64) (i32.const 8) (i32.const 32)))
          (if (i64.eq (i64.load (i32.const 8)) (i64.const 8))
            (then (drop (call $timer_set (i64.load (i32.const 64))))))))"""

    def described(kind: int, length: int) -> bytes:
        return kind.to_bytes(4, "little") + bytes(4) + length.to_bytes(8, "little")

    with Actor(wat(text)) as actor:
        assert actor.due is None
        with pytest.raises(GuestError, match="not due"):
            actor.wake()
        assert actor.send((10**12).to_bytes(8, "little")).read() == described(0, 8)
        assert actor.due == pytest.approx(time.time() + 1000, abs=100)
        with pytest.raises(GuestError, match="not due"):
            actor.wake()
        with Actor.thaw(actor.freeze(), wat(text)) as thawed:
            assert thawed.due == actor.due
        assert actor.send(bytes(8)).read() == described(0, 8)
        assert actor.wake().read() == described(1, 0)
        assert actor.due is None
        actor.send((10**12).to_bytes(8, "little")).read()
        actor.send((2**64 - 1).to_bytes(8, "little")).read()
        assert actor.due is None


def test_random_bytes_are_those_of_the_actor() -> None:
    text = f"""(module {imports("random_fill", "reply_write")}
        (import "wasi_snapshot_preview1" "random_get" (func $get (param i32 i32) (result i32)))
        (memory (export "memory") 4)
        {MESSAGE}
          (drop (call $random_fill (i32.const 0) (i32.const 100)))
          (drop (call $get (i32.const 100) (i32.const 90000)))
          (drop (call $reply_write (i32.const 0) (i32.const 90100)))))"""
    with Actor(wat(text)) as actor, Actor(wat(text)) as other:
        first = actor.send("").read()
        assert first != other.send("").read()
        with Actor.thaw(actor.freeze(), wat(text)) as thawed, actor.fork() as fork:
            second = actor.send("").read()
            assert thawed.send("").read() == second
            assert fork.send("").read() not in (first, second)
    assert len(set(first)) == 256


def test_the_random_stream_is_the_same_however_it_is_read() -> None:
    whole = RandomStream(bytes(32))(1000)
    pieces = RandomStream(bytes(32))
    assert b"".join(pieces(n) for n in (0, 1, 63, 64, 65, 128, 300)) == whole[:621]
    assert RandomStream(bytes(32), 621)(379) == whole[621:]
    assert RandomStream(bytes(32)).derive("a")(64) != RandomStream(bytes(32)).derive("b")(64)
    assert RandomStream(bytes(32)).derive("a")(64) != RandomStream(bytes(32), 1).derive("a")(64)


def test_a_program_that_is_no_actor_is_refused() -> None:
    for text, why in (
        ('(module (memory (export "memory") 1))', "exports no function wm_actor_message"),
        ('(module (func (export "wm_actor_message") (param i32)))', "without parameters"),
        (f'(module {MESSAGE}) (global (export "wm_actor_start") i32 (i32.const 0)))', "wm_actor_start, but not"),
    ):
        with pytest.raises(GuestError, match=why):
            wat(text)
    with pytest.raises(GuestError, match="convert it to binary"):
        ActorProgram(b"(module) ;;" + b" " * 20000)
    with pytest.raises(GuestError, match="cannot read"):
        ActorProgram("no/such.wasm")


def test_the_name_of_an_actor_is_checked() -> None:
    for name in ("", "x" * 257, "a\0b", "\ud800"):
        with pytest.raises(GuestError, match="1 to 256 bytes"):
            Actor(wat(ECHO), id=name)


@pytest.mark.parametrize(
    "given", [{"args": ["x" * (1 << 20) + "y"]}, {"env": {"a\0": "b"}}, {"dirs": {"x" * 5000: "."}}]
)
def test_what_no_snapshot_could_hold_is_refused_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(GuestError, match="no snapshot could hold these"):
        Actor(wat(ECHO), **given)


def test_a_program_for_guests_is_refused() -> None:
    with pytest.raises(GuestError, match="make an ActorProgram"):
        Actor(Program(ECHO.encode()))  # type: ignore[arg-type]


def test_a_guest_that_is_no_actor_is_refused_the_interface(tmp_path: Path) -> None:
    text = f"""(module {imports("timer_set")} (memory (export "memory") 1)
        (func (export "set") (result i32) (call $timer_set (i64.const 1))))"""
    with Guest(text.encode()) as guest:
        assert guest.call("set") == 58  # NOTSUP


@pytest.mark.timeout(600)  # the first time, the compiler builds the C library too
def test_the_example_in_c(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "actors.md").read_text()
    (code,) = re.findall(r"```c\n(.*?)```", page, re.S)
    (line,) = re.findall(r"^python -m (ziglang .*)$", page, re.M)
    (tmp_path / "counter.c").write_text(code)
    arguments = line.replace('"$(wasmetal sdk include-dir)"', str(INCLUDE)).split()
    subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, check=True)
    with Actor(tmp_path / "counter.wasm") as actor:
        assert [actor.send("a").read(), actor.send("bc").read()] == [b"a\1\0\0\0", b"bc\2\0\0\0"]
        with actor.fork() as fork:
            assert fork.send("").read() == b"\3\0\0\0"
        with Actor.thaw(actor.freeze(), tmp_path / "counter.wasm") as thawed:
            assert thawed.send("").read() == b"\3\0\0\0"
