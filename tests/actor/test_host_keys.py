"""Messages with a key are handled once, whoever sends them again, and whatever has ended meanwhile."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.actor.hosts import count, crash, host_on, kind, number, obedient
from tests.actor.test_store_kills import FullDisk
from wasmetal import Actor
from wasmetal.actor.hosting.answered import Answered
from wasmetal.actor.store import DirectoryStore
from wasmetal.actor.store.system import Files
from wasmetal.errors import AlreadyHandledError, GuestError, GuestTrapError, SnapshotError


@pytest.mark.parametrize("durability", ["message", "freeze"])
def test_a_message_that_is_sent_again_is_not_handled_again(tmp_path: Path, durability: str) -> None:
    with host_on(tmp_path, durability=durability) as host:
        first = [count(host, "a", key=str(i)) for i in range(4)]
        assert [count(host, "a", key=str(i)) for i in range(4)] == first == [1, 2, 3, 4]
        assert count(host, "a", key="1", sender="another") == 5  # it is another's key
        assert count(host, "b", key="1") == 1
        host.freeze("a")
        assert count(host, "a", key="2") == 3
        assert host.stats().repeated == 5
        assert host.stats().messages == 6
        with pytest.raises(GuestError, match="was used for another message"):
            host.send("a", b"other", key="1").read()
        assert count(host, "a") == 6
    with host_on(tmp_path, durability=durability) as host:
        assert [count(host, "a", key=str(i)) for i in range(4)] == first
        assert count(host, "a") == 7
        host.fork("a", "c")
        assert count(host, "c", key="1") == 8  # a fork is another actor
        host.delete("a")
        assert count(host, "a", key="1") == 1


def test_what_a_crash_undoes_is_handled_again(tmp_path: Path) -> None:
    host = host_on(tmp_path, durability="freeze")
    assert count(host, "a", key="1") == 1
    host.freeze("a")
    assert count(host, "a", key="2") == 2
    crash(host)
    with host_on(tmp_path) as host:
        assert count(host, "a", key="1") == 1
        assert count(host, "a", key="3") == 2
        assert count(host, "a", key="2") == 3
    host = host_on(tmp_path)
    assert count(host, "a", key="4") == 4
    crash(host)
    with host_on(tmp_path) as host:
        assert [count(host, "a", key=key) for key in "12344"] == [1, 3, 2, 4, 4]


def test_a_message_that_is_sent_again_while_it_waits_or_is_handled(tmp_path: Path) -> None:
    begun, going = threading.Event(), threading.Event()

    def hold(_: bytes) -> None:
        begun.set()
        assert going.wait(60)

    with host_on(tmp_path, types=kind(stdout=hold)) as host:
        replies = [host.send("a", b"p!", key="1") for _ in range(3)]
        assert begun.wait(60)
        replies += [host.send("a", b"p!", key="1")]
        replies += [host.send("a", b"i", key="2") for _ in range(3)]
        with pytest.raises(GuestError, match="was used for another message"):
            host.send("a", b"other", key="2")
        going.set()
        assert [number(reply) for reply in replies] == [1, 1, 1, 1, 2, 2, 2]
        assert host.stats().messages == 2


def test_a_message_that_failed_may_be_sent_again(tmp_path: Path) -> None:
    with host_on(tmp_path) as host:
        for _ in range(2):
            with pytest.raises(GuestTrapError):
                host.send("a", b"t", key="1").read()
        assert count(host, "a", key="1") == 1


def test_so_many_keys_and_replies_are_remembered(tmp_path: Path) -> None:
    with host_on(tmp_path, keys=3) as host:
        for i in range(4):
            assert count(host, "a", b"b", key=str(i)) == i + 1
        assert len(host.send("a", b"b", key="3").read()) == 200_004
        for key in "12":
            with pytest.raises(AlreadyHandledError, match="its reply of 200004 bytes is no longer kept"):
                host.send("a", b"b", key=key).read()
        assert count(host, "a", b"b", key="0") == 5  # it was forgotten
    with host_on(tmp_path, keys=1) as host:
        assert count(host, "a", b"b", key="0") == 5
        assert count(host, "a", b"b", key="3") == 6
    with host_on(tmp_path, keys=0) as host:
        assert [count(host, "a", key="same") for _ in range(2)] == [7, 8]


def test_a_message_that_cannot_be_saved_has_not_been_handled(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with host_on(store) as host:
        assert count(host, "a", key="1") == 1
        for step in range(40):
            store.files = FullDisk(step)
            reply = host.send("a", b"i", key="2")
            reply.wait()
            store.files = Files()
            if reply.error:
                assert isinstance(reply.error, SnapshotError)
                assert "No space left on device" in str(reply.error)
            assert count(host, "b", key="1") == 1
            if not reply.error:
                break
        assert step > 5
        assert [count(host, "a", key=key) for key in "123"] == [1, 2, 3]


DIGEST = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    "value",
    [
        {},
        [[]],
        [[DIGEST, DIGEST, 0]],
        [["x", DIGEST, 0, None]],
        [[DIGEST, "", 0, None]],
        [[DIGEST, DIGEST, -1, None]],
        [[DIGEST, DIGEST, 1, ""]],
        [[DIGEST, DIGEST, 0, "é"]],
        [[DIGEST, DIGEST, 3, "AAA"]],
        [[DIGEST, DIGEST, 3, 3]],
        [[DIGEST, DIGEST, 900_000, "A" * 1_200_000]],
    ],
)
def test_hostile_records_are_refused(value: object) -> None:
    with pytest.raises(SnapshotError, match="manifest is damaged"):
        Answered.from_json("what was answered", value, 10)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"version": 2, "type": "a", "answered": []},
        {"version": 1, "type": 3, "answered": []},
        {"version": 1, "type": "a", "answered": [], "more": 1},
        {"version": 1, "type": "a", "answered": [None]},
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, value: object) -> None:
    store = DirectoryStore(tmp_path)
    with Actor(obedient(), id="a") as actor, store.saving("a") as saving:
        saving.commit(actor.freeze_into(saving).to_json() | {"host": value})
    with host_on(tmp_path) as host, pytest.raises(SnapshotError, match=r"manifest is damaged: .*the manifest's host"):
        host.send("a", b"i").read()


SOAK = """
import sys, threading
from pathlib import Path
from tests.actor.hosts import host_on, number
host = host_on(Path(sys.argv[1]), resident=4, workers=3)
lock = threading.Lock()
def send(sender):
    for turn in range(10**6):
        actor, key = f"a{(sender + turn) % 7}", f"{sys.argv[2]}-{sender}-{turn}"
        with lock:
            print("sent", actor, key, flush=True)
        found = number(host.send(actor, b"i", key=key))
        with lock:
            print("done", actor, key, found, flush=True)
threads = [threading.Thread(target=send, args=(sender,)) for sender in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.parametrize("rounds", [2, pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_host_that_is_killed_loses_nothing_that_it_has_replied_to(tmp_path: Path, rounds: int) -> None:
    """SIGKILL at random moments; what had not been replied to is sent to the next host again, with the same keys."""
    chance = random.Random(rounds)
    replied: dict[tuple[str, str], int] = {}
    sent: set[tuple[str, str]] = set()
    for turn in range(rounds):
        command = [sys.executable, "-c", SOAK, tmp_path / "store", str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout
            left = chance.randrange(20, 120)
            for line in process.stdout:
                if not line.endswith("\n"):  # cut off
                    continue
                what, actor, key, *found = line.split()
                if what == "sent":
                    sent.add((actor, key))
                else:
                    replied[actor, key] = int(found[0])
                    left -= 1
                if not left:
                    os.kill(process.pid, signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
        with host_on(tmp_path / "store", resident=4) as host:
            for actor, key in sorted(sent - replied.keys()):
                replied[actor, key] = count(host, actor, key=key)
            lately = [each for each in sorted(replied) if each[1].startswith(f"{turn}-")]
            for actor, key in chance.sample(lately, 3):
                assert count(host, actor, key=key) == replied[actor, key]
            for actor in host.actors():
                numbers = sorted(found for (each, _), found in replied.items() if each == actor)
                assert numbers == list(range(1, len(numbers) + 1))  # each handled once, and none lost
