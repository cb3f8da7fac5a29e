"""Actors whose snapshots are stored, and thawed in another process."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.actor.guests import MESSAGE, imports, wat
from tests.actor.snapshots import chunk_files
from wasmetal import Actor
from wasmetal.actor.actor import Snapshot
from wasmetal.actor.manifest import Manifest
from wasmetal.actor.store import DirectoryStore, HmacKey, SnapshotFile, container
from wasmetal.actor.store.system import Files

COUNTER = f"""(module {imports("reply_write")} (memory (export "memory") 40) (global $n (mut i32) (i32.const 0))
  {MESSAGE}
    (global.set $n (i32.add (global.get $n) (i32.const 1)))
    (i32.store offset=8 (i32.mul (global.get $n) (i32.const 65536)) (global.get $n))
    (i32.store (i32.const 0)
      (i32.add (i32.load offset=8 (i32.mul (global.get $n) (i32.const 65536))) (i32.load (i32.const 0))))
    (drop (call $reply_write (i32.const 0) (i32.const 4)))))"""
"""Adds the number of each message to a sum, and touches a page of its memory for it."""
KEY = HmacKey(bytes(range(32)))

TURN = """
import sys
from tests.actor.test_store_actor import turn
print(turn(sys.argv[1]))
"""


def turn(folder: str | Path, files: Files | None = None) -> int:
    """Thaw the actor, have it handle a message, and freeze it again."""
    store = DirectoryStore(folder, key=KEY, files=files)
    with store.lease("counter") as lease, store.load("counter", lease) as stored:
        snapshot = Snapshot(Manifest.from_json(stored.manifest), stored)
        with Actor.thaw(snapshot, wat(COUNTER)) as actor, store.saving("counter", lease) as saving:
            reply = actor.send("").read()
            saving.commit(actor.freeze_into(saving).to_json())
    return int.from_bytes(reply, "little")


def begin(store: DirectoryStore) -> None:
    with Actor(wat(COUNTER), id="counter") as actor, store.saving("counter") as saving:
        saving.commit(actor.freeze_into(saving).to_json())


def test_each_message_in_another_process(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store", key=KEY)
    begin(store)
    sums = []
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", TURN, store.layout.root], capture_output=True, text=True, timeout=100, check=True
        )
        sums.append(int(done.stdout))
    assert sums == [1, 3, 6, 10]
    # Each snapshot shares with the one before what has not changed: a message adds a page, and changes one.
    assert len(chunk_files(store.layout.root)) == 4 + 4
    assert store.gc().removed == 3
    assert turn(store.layout.root) == 15


DYING_TURN = """
import sys
from tests.actor.dying import Dying
from tests.actor.test_store_actor import turn
turn(sys.argv[1], Dying(int(sys.argv[2]), sys.argv[3] == "half", sys.stdout.fileno()))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_freeze_killed_at_every_step_leaves_the_actor_before_its_message_or_after_it(tmp_path: Path) -> None:
    begin(DirectoryStore(tmp_path / "base", key=KEY))
    assert turn(tmp_path / "base") == 1
    sums = []
    for step in range(1000):
        for half in ("before", "half"):
            shutil.copytree(tmp_path / "base", root := tmp_path / f"{step}-{half}")
            command = [sys.executable, "-c", DYING_TURN, root, str(step), half]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            sums.append(turn(root))
            if done.stdout != "write":
                break  # it has no half
        if done.returncode == 0:
            break
    assert step > 15
    assert sums == sorted(sums)  # from some step on the message counts
    assert set(sums) == {3, 6}


def test_a_conversation_carried_in_a_file(tmp_path: Path) -> None:
    store, file = DirectoryStore(tmp_path / "store", key=KEY), tmp_path / "counter.actor"
    begin(store)
    assert [turn(store.layout.root) for _ in range(3)] == [1, 3, 6]
    with store.load("counter") as stored, file.open("wb") as out:
        container.write(out, stored, KEY)
    with Actor.thaw(
        Snapshot(Manifest.from_json((opened := SnapshotFile(file, KEY)).manifest), opened), wat(COUNTER)
    ) as actor:
        assert actor.send("").read() == (10).to_bytes(4, "little")
    other = DirectoryStore(tmp_path / "other", key=KEY)
    container.read_into(other, io.BytesIO(file.read_bytes()), key=KEY)
    assert turn(other.layout.root) == 10
