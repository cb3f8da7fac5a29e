"""Hosts of actors: who is awake, whose turn it is, and what ends whom."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from tests.actor.guests import ECHO, wat
from tests.actor.hosts import count, crash, descriptors, host_on, kind, number, obedient, tasks
from tests.actor.snapshots import chunk_files
from wasmetal import Actor, ActorHost, ActorType, Limits, Snapshot
from wasmetal.actor.manifest import Manifest
from wasmetal.actor.store import ActorHeldError, DirectoryStore, UrlStore
from wasmetal.errors import (
    ActorBusyError,
    ForkedError,
    GuestError,
    GuestTrapError,
    LimitError,
    SnapshotError,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.01)


def test_actors_are_woken_by_messages_and_the_least_recently_used_is_frozen(tmp_path: Path) -> None:
    with host_on(tmp_path, resident=2) as host:
        assert [count(host, name) for name in ("a", "b", "a", "c")] == [1, 1, 2, 1]
        assert host.resident() == ["a", "c"]
        assert host.actors() == ["a", "b", "c"]
        assert count(host, "b") == 2
        assert host.resident() == ["c", "b"]
        host.freeze("c")
        host.freeze("c")  # it is frozen already
        assert host.resident() == ["b"]
        stats = host.stats()
        assert (stats.messages, stats.created, stats.thawed, stats.frozen) == (5, 3, 1, 3)
        assert stats.memory_bytes == 4 * 65536
        assert 0 < stats.activation_p50 <= stats.activation_p99
    with host_on(tmp_path) as host:
        assert host.resident() == []
        assert [count(host, name) for name in ("a", "b", "c", "d")] == [3, 3, 2, 1]


@pytest.mark.parametrize("durability", ["message", "freeze"])
def test_what_a_crash_loses(tmp_path: Path, durability: str) -> None:
    host = host_on(tmp_path, durability=durability)
    assert [count(host, "a") for _ in range(3)] == [1, 2, 3]
    host.freeze("a")
    assert [count(host, "a") for _ in range(2)] == [4, 5]
    assert count(host, "new") == 1
    crash(host)
    with host_on(tmp_path, durability=durability) as host:
        assert count(host, "a") == (6 if durability == "message" else 4)
        assert count(host, "new") == (2 if durability == "message" else 1)


def test_a_reply_ends_once_it_is_on_the_disk(tmp_path: Path) -> None:
    other = DirectoryStore(tmp_path)
    with host_on(tmp_path) as host:
        for expected in (1, 2, 3):
            assert count(host, "a") == expected
            with other.load("a") as stored:  # others read what a host has stored, too
                snapshot = Snapshot(Manifest.from_json(stored.manifest), stored)
                with Actor.thaw(snapshot, obedient()) as actor:
                    assert int.from_bytes(actor.send("i").read(), "little") == expected + 1


def test_pieces_can_be_read_before_the_end(tmp_path: Path) -> None:
    going = threading.Event()
    text = wat(ECHO)
    with ActorHost(DirectoryStore(tmp_path), ActorType(program=text)) as host:
        reply = host.send("ann", "hello", sender="bob")
        assert list(reply) == list(reply) == [b"hello", b"bob", b"ann"]
        assert reply.read() == b"hellobobann"
        assert reply.done
        assert not reply.error
    with host_on(tmp_path / "2", types=kind(stdout=lambda _: going.wait(60))) as host:
        reply = host.send("a", b"p!")
        with pytest.raises(GuestError, match=r"not replied within 0\.05 seconds"):
            reply.read(0.05)
        going.set()
        assert number(reply) == 1


@pytest.mark.parametrize(("message", "error"), [(b"t", GuestTrapError), (b"l", LimitError), (b"f", LimitError)])
def test_a_failing_message_ends_its_actor_alone_and_the_last_snapshot_stands(
    tmp_path: Path, message: bytes, error: type[GuestError]
) -> None:
    limits = Limits(wall_seconds=1.5 if message == b"l" else 60)
    with host_on(tmp_path, types=kind(limits=limits), reply_bytes=1 << 20) as host:
        assert [count(host, name) for name in ("a", "b", "a")] == [1, 1, 2]
        failing = host.send("a", message)
        with pytest.raises(error):
            failing.read()
        assert isinstance(failing.error, error)
        assert host.resident() == ["b"]
        assert [count(host, name) for name in ("b", "a")] == [2, 3]
        with pytest.raises(error):
            host.send("never", message).read()
        assert host.actors() == ["a", "b"]
        assert host.stats().failed == 2


def test_messages_wait_in_bounded_queues(tmp_path: Path) -> None:
    going, begun = threading.Event(), threading.Event()

    def hold(_: bytes) -> None:
        begun.set()
        assert going.wait(60)

    with host_on(tmp_path, types=kind(stdout=hold), queue=2, queued_bytes=10_000) as host:
        held = host.send("a", b"p!")
        assert begun.wait(60)
        waiting = [host.send("a", b"i") for _ in range(2)]
        with pytest.raises(ActorBusyError, match="2 messages wait for actor a"):
            host.send("a", b"i")
        with pytest.raises(ActorBusyError, match="2 messages of 2050 bytes wait for the host's actors"):
            host.send("b", bytes(8000), wait=0.01)
        assert count(host, "b") == 1  # nobody else is held up
        late: list[int] = []
        waiter = threading.Thread(target=lambda: late.append(count(host, "a", wait=60)))
        waiter.start()
        going.set()
        waiter.join(60)
        assert [number(each) for each in (held, *waiting)] + late == [1, 2, 3, 4]


def test_actors_take_turns(tmp_path: Path) -> None:
    going, order = threading.Event(), bytearray()

    def write(data: bytes) -> None:
        order.extend(data)
        assert going.wait(60)

    with host_on(tmp_path, types=kind(stdout=write), workers=1) as host:
        replies = [host.send("first", b"p-")]
        until(lambda: bytes(order) == b"-")
        replies += [host.send(name, f"p{name}".encode()) for name in "aaaabbc"]
        going.set()
        for reply in replies:
            reply.read()
    assert order == b"-abcabaa"


def test_many_senders_to_many_actors(tmp_path: Path) -> None:
    senders, names, each = 5, [f"actor-{i}" for i in range(8)], 3
    seen: dict[tuple[int, str], list[int]] = {}

    def send(sender: int) -> None:
        replies = [(name, host.send(name, b"i", wait=60)) for _ in range(each) for name in names]
        for name, reply in replies:
            seen.setdefault((sender, name), []).append(number(reply))

    with host_on(tmp_path, resident=4, workers=3, queue=5) as host:
        threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(host.resident()) <= 4
    for name in names:
        lists = [seen[sender, name] for sender in range(senders)]
        assert all(numbers == sorted(numbers) for numbers in lists)  # each sender's order is kept
        assert sorted(chain(*lists)) == list(range(1, senders * each + 1))  # none is lost, none handled twice


def test_idle_actors_are_frozen(tmp_path: Path) -> None:
    with host_on(tmp_path, idle_seconds=0.05, durability="freeze") as host:
        assert count(host, "a") == 1
        until(lambda: not host.resident())
        assert count(host, "a") == 2


def test_actors_that_take_too_much_memory_are_frozen(tmp_path: Path) -> None:
    with host_on(tmp_path, memory_bytes=3 << 20) as host:
        for name in "abcdef":
            assert count(host, name, b"g") == 1
            assert host.stats().memory_bytes <= 3 << 20
        assert host.resident() == ["e", "f"]  # of 1.25 MiB each
        assert count(host, "a") == 2


def test_an_actor_is_awake_in_one_place(tmp_path: Path) -> None:
    with host_on(tmp_path) as one, host_on(tmp_path) as other:
        assert count(one, "a") == 1
        with pytest.raises(ActorHeldError, match="actor a is awake in process"):
            other.send("a", b"i").read()
        with pytest.raises(ActorHeldError):
            other.delete("a")
        assert count(one, "a") == 2
        one.freeze("a")
        assert count(other, "a") == 3


def test_an_actor_that_cannot_be_frozen(tmp_path: Path) -> None:
    """With "message" its sender is told. Otherwise it ends when others need its place."""
    (tmp_path / "file").write_bytes(b"")
    with host_on(tmp_path / "1", types=kind(dirs={"/data": tmp_path})) as host:
        assert count(host, "a") == 1
        with pytest.raises(SnapshotError, match="an open file"):
            host.send("a", b"o").read()
        assert count(host, "a") == 2
    with host_on(tmp_path / "2", types=kind(dirs={"/data": tmp_path}), durability="freeze", resident=1) as host:
        assert count(host, "a") == 1
        host.freeze("a")
        assert count(host, "a", b"o") == 2
        assert count(host, "b") == 1
        assert host.stats().lost == 1
        assert count(host, "a", b"o") == 2
        with pytest.raises(SnapshotError, match="an open file"):
            host.freeze("a")
        assert count(host, "a", b"o") == 2
        with pytest.raises(SnapshotError, match=r"1 actors could not be frozen: a: .*an open file"):
            host.close()


def timer(seconds: float) -> bytes:
    return b"s" + struct.pack("<q", int(seconds * 1e9))


def store_overdue(folder: Path, actor_id: str) -> None:
    """An actor whose timer is due already, and that nobody has woken."""
    store = DirectoryStore(folder)
    with Actor(obedient(), id=actor_id) as actor, store.saving(actor_id) as saving:
        actor.send(timer(0)).read()
        saving.commit(actor.freeze_into(saving).to_json())


def test_timers_are_delivered_to_actors_that_are_awake_or_frozen(tmp_path: Path) -> None:
    woken: list[tuple[str, int]] = []
    with host_on(
        tmp_path, on_wake=lambda name, reply: woken.append((name, int.from_bytes(reply, "little"))), resident=1
    ) as host:
        assert count(host, "a", timer(0)) == 1
        until(lambda: woken == [("a", 1001)])
        assert count(host, "a", timer(1000)) == 1002
        assert count(host, "b", timer(1000)) == 1  # so that a is frozen
        assert host.stats().timers == 2
        assert count(host, "a", timer(0.5)) == 1003
        assert count(host, "b") == 2
        until(lambda: len(woken) == 2)
        assert woken[1] == ("a", 2003)
        assert host.stats().timers == 1
        host.delete("b")
        assert host.stats().timers == 0


def test_timers_of_an_earlier_host(tmp_path: Path) -> None:
    woken: list[str] = []
    for i in range(20):
        store_overdue(tmp_path, f"a{i}")
    with host_on(tmp_path, on_wake=lambda name, _: woken.append(name), timers=False) as host:
        assert count(host, "b") == 1
        assert not host.stats().reading_timers
        time.sleep(0.2)
    assert not woken
    for _ in range(2):  # the second time there is none
        with host_on(tmp_path, on_wake=lambda name, _: woken.append(name)) as host:
            until(lambda: not host.stats().reading_timers)
            until(lambda: len(woken) == 20)
            assert count(host, "a0") in (1002, 1003)
    assert sorted(woken) == sorted(f"a{i}" for i in range(20))


def test_a_timer_whose_message_fails_is_not_tried_at_once(tmp_path: Path) -> None:
    """Its snapshot says that it is due; that must not keep the host busy."""
    store_overdue(tmp_path, "a")
    with host_on(tmp_path, reply_bytes=3) as host:
        until(lambda: host.stats().failed == 1)
        time.sleep(0.3)
        assert host.stats().failed == 1
        assert host.stats().timers == 1
        assert host.resident() == []


def test_forks(tmp_path: Path) -> None:
    with host_on(tmp_path, resident=2) as host:
        assert [count(host, "a") for _ in range(2)] == [1, 2]
        host.fork("a", "b")
        assert host.resident() == ["a", "b"]
        host.fork("a", "c")  # there is no place for it
        assert host.resident() == ["b", "a"]
        assert [count(host, name) for name in ("a", "a", "b", "c")] == [3, 4, 3, 3]
        for new_id in ("a", "b"):
            with pytest.raises(SnapshotError, match="already"):
                host.fork("a", new_id)
        with pytest.raises(SnapshotError, match="no snapshot of actor nobody"):
            host.fork("nobody", "d")
        host.freeze("a")
        host.fork("a", "e")  # it is woken for that
        assert count(host, "e") == 5
    with host_on(tmp_path, resident=1) as host:
        assert count(host, "b") == 4
        with pytest.raises(SnapshotError, match="an actor b already"):
            host.fork("a", "b")  # which has the only place


def test_actors_that_are_created_and_deleted(tmp_path: Path) -> None:
    with host_on(tmp_path, durability="freeze") as host:
        host.create("a", args=["x"])
        assert DirectoryStore(tmp_path).actors() == ["a"]
        with pytest.raises(SnapshotError, match="an actor a already"):
            host.create("a")
        assert count(host, "a") == 1
        assert count(host, "b") == 1
        with pytest.raises(SnapshotError, match="no snapshot of actor nobody"):
            host.send("nobody", b"i", create=False).read()
        assert host.actors() == ["a", "b"]  # b was never saved
        for name in "ab":
            host.delete(name)
        assert host.actors() == host.resident() == []
        with pytest.raises(SnapshotError, match="no snapshot of actor a"):
            host.delete("a")
        assert count(host, "a") == 1


def test_several_types(tmp_path: Path) -> None:
    types = {"count": kind(), "echo": ActorType(program=wat(ECHO)), "again": kind(args=["x"])}
    store = DirectoryStore(tmp_path)
    with Actor(wat(ECHO), id="own") as actor, store.saving("own") as saving:
        saving.commit(actor.freeze_into(saving).to_json())
    with Actor(obedient(), id="either") as actor, store.saving("either") as saving:
        saving.commit(actor.freeze_into(saving).to_json())
    for _ in range(2):
        with ActorHost(store, types) as host:
            assert count(host, "a", type="again")
            assert host.send("e", "hi", type="echo").read() == b"hie"
            assert host.send("e", "hi").read() == b"hie"
            assert host.send("own", "hi").read() == b"hiown"
            assert count(host, "either", type="count")
            with pytest.raises(GuestError, match="of the type 'again', not 'echo'"):
                host.send("a", b"i", type="echo").read()
            with pytest.raises(GuestError, match="no type of actors 'none'"):
                host.send("a", b"i", type="none")
            with pytest.raises(GuestError, match="say of which type"):
                host.send("new", b"i").read()
    with (
        ActorHost(store, {"echo": types["echo"]}) as host,
        pytest.raises(SnapshotError, match=r"none of the host's types \(echo\) have the actor's program"),
    ):
        host.send("a", b"i").read()


@pytest.mark.parametrize("actor_id", ["", "../a", "A", "a/b", "a\0", ".a", "a" * 101, "ä"])
def test_ids_that_are_refused(tmp_path: Path, actor_id: str) -> None:
    with host_on(tmp_path) as host:
        for use in (host.create, host.freeze, host.delete, lambda each: host.fork("a", each)):
            with pytest.raises(SnapshotError, match="is not an actor id"):
                use(actor_id)
        with pytest.raises(SnapshotError, match="is not an actor id"):
            host.send(actor_id, b"i")
        assert host.actors() == []


def test_messages_that_are_refused(tmp_path: Path) -> None:
    with host_on(tmp_path, message_bytes=1000) as host:
        with pytest.raises(GuestError, match="a message of 1001 bytes; at most 1000"):
            host.send("a", bytes(1001))
        with pytest.raises(GuestError, match="a message's sender is a text"):
            host.send("a", b"i", sender="\ud800")
        for key in ("", "k" * 257, "\ud800"):
            with pytest.raises(GuestError, match="a message's key is a text of 1 to 256 bytes"):
                host.send("a", b"i", key=key)
        assert host.actors() == []
    for wrong in ({"durability": "always"}, {"resident": 0}, {"keys": -1}, {"types": {}}):
        with pytest.raises(GuestError):
            ActorHost(DirectoryStore(tmp_path), **{"types": kind(), **wrong})  # type: ignore[arg-type]


def test_a_damaged_snapshot_is_that_actors_trouble(tmp_path: Path) -> None:
    with host_on(tmp_path) as host:
        assert [count(host, name) for name in "ab"] == [1, 1]
    path = tmp_path / "actors" / "a.snapshot"
    path.write_bytes(path.read_bytes()[:-1])
    with host_on(tmp_path) as host:
        for _ in range(2):
            with pytest.raises(SnapshotError, match="cut off"):
                host.send("a", b"i").read()
        assert count(host, "b") == 2


def test_closing_fails_what_waits_and_saves_the_rest(tmp_path: Path) -> None:
    begun = threading.Event()
    going = threading.Event()

    def hold(_: bytes) -> None:
        begun.set()
        assert going.wait(60)

    host = host_on(tmp_path, types=kind(stdout=hold), durability="freeze", workers=2)
    assert count(host, "b") == 1
    held = host.send("a", b"p!", key="1")
    assert begun.wait(60)
    waiting = host.send("a", b"i", key="2")
    closing = threading.Thread(target=host.close)
    closing.start()
    with pytest.raises(GuestError, match="host is closed"):
        waiting.read(60)
    going.set()
    assert number(held) == 1
    closing.join(60)
    host.close()
    for use in (lambda: host.send("a", b"i"), lambda: host.freeze("a")):
        with pytest.raises(GuestError, match="host is closed"):
            use()
    with host_on(tmp_path) as host:
        assert [count(host, name) for name in "ab"] == [2, 2]


def test_closing_stops_what_does_not_end(tmp_path: Path) -> None:
    host = host_on(tmp_path, durability="freeze")
    assert count(host, "b") == 1
    reply = host.send("a", b"l")
    until(lambda: host.stats().busy == 1)
    host.close(0.1)
    with pytest.raises(GuestError, match="stopped"):
        reply.read(60)
    assert DirectoryStore(tmp_path).actors() == ["b"]


def test_actors_are_frozen_when_the_process_ends(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.actor.hosts import count, host_on
host = host_on(Path(sys.argv[1]), durability="freeze")
assert count(host, "a") == 1
host.send("b", b"l")
"""
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, timeout=100, check=True, cwd=Path(__file__).parents[2], capture_output=True)
    assert done.stderr == b""
    with host_on(tmp_path) as host:
        assert host.actors() == ["a"]
        assert count(host, "a") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_cannot_use_its_parents_host(tmp_path: Path) -> None:
    with host_on(tmp_path) as host:
        assert count(host, "a") == 1
        if not (child := os.fork()):
            refused = 0
            for use in (lambda: host.send("a", b"i"), lambda: host.freeze("a")):
                try:
                    use()
                except ForkedError:
                    refused += 1
            host.close()
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        assert count(host, "a") == 2


def test_the_store_is_collected(tmp_path: Path) -> None:
    """Each message leaves a chunk behind, which its actor's next snapshot does not name."""
    with host_on(tmp_path, collect_seconds=None) as host:
        for expected in range(1, 11):
            assert count(host, "a") == expected
    assert len(chunk_files(tmp_path)) == 10
    with host_on(tmp_path, collect_seconds=0.02) as host:
        until(lambda: len(chunk_files(tmp_path)) == 1)
        assert [count(host, "a") for _ in range(20)] == list(range(11, 31))
        until(lambda: len(chunk_files(tmp_path)) == 1)
    with host_on(tmp_path) as host:
        assert count(host, "a") == 31


@linux
def test_what_a_host_takes_does_not_grow_with_its_actors(tmp_path: Path) -> None:
    with host_on(tmp_path, resident=4, workers=3) as host:
        for turn in range(2):
            for reply in [host.send(f"a{i}", b"i", wait=60) for i in range(10 * (1 + turn)) for _ in range(2)]:
                reply.read()
            until(lambda: not host.stats().busy)
            if not turn:
                before = tasks(), descriptors()
        until(lambda: tasks() <= before[0] and descriptors() <= before[1])
        assert len(host._turns._lines) == 0
        assert len(host._under_way) == 0
    with host_on(tmp_path, resident=4) as host:
        assert count(host, "a0") == 5
    opened = descriptors()
    with host_on(tmp_path, resident=4) as host:
        assert count(host, "a0") == 6
    assert descriptors() == opened


def test_a_lease_that_runs_out_is_renewed(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}-hosts"
    store = UrlStore(url, lease_seconds=6)

    def end() -> float:
        return float(json.loads(store.objects.read("leases/a", 4096))["until"])

    with host_on(store) as host:
        assert count(host, "a") == 1
        before = end()
        until(lambda: end() > before)
        with pytest.raises(ActorHeldError):
            UrlStore(url).lease("a")
        assert count(host, "a") == 2
    UrlStore(url).lease("a").close()


def test_an_actor_whose_lease_was_lost_goes_on_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}-hosts"
    with host_on(UrlStore(url)) as host, host_on(UrlStore(url)) as other:
        assert [count(host, "a") for _ in range(2)] == [1, 2]
        UrlStore(url).objects.remove("leases/a")  # as if it had run out
        assert count(other, "a") == 3
        with pytest.raises(ActorHeldError):
            host.send("a", b"i").read()
        with pytest.raises(ActorHeldError):
            host.send("a", b"i").read()
        other.freeze("a")
        assert count(host, "a") == 4


def test_messages_can_be_cancelled(tmp_path: Path) -> None:
    with host_on(tmp_path, workers=2) as host:
        assert count(host, "a") == 1
        running, waiting = host.send("a", b"l"), host.send("a", b"i")
        until(lambda: bool(host.stats().busy))
        waiting.cancel()
        running.cancel()
        for reply in (running, waiting):
            with pytest.raises(GuestError):
                reply.read(60)
        assert count(host, "a") == 2  # neither of them was
        done = host.send("a", b"i")
        assert number(done) == 3
        done.cancel()
        assert (number(done), count(host, "a")) == (3, 4)
