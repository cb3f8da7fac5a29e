"""Leases: an actor is awake in one place at a time, whatever becomes of the process that has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.actor.snapshots import load, manifest_of, save
from wasmetal.actor.store import ActorHeldError, DirectoryStore
from wasmetal.errors import SnapshotError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_one_holder_at_a_time(store: DirectoryStore) -> None:
    assert store.holder("a") is None
    with store.lease("a") as lease, store.lease("b"):
        assert (found := store.holder("a"))
        assert found.pid == os.getpid()
        for act in (store.lease, store.saving, store.delete):
            with pytest.raises(ActorHeldError, match=rf"actor a is awake in process {os.getpid()} on "):
                act("a")
        with store.saving("a", lease) as saving:
            saving.commit(manifest_of([]))
        assert load(store, "a") == (manifest_of([]), set())  # whoever looks needs no lease
        assert store.load("a", lease).close() is None
        store.delete("a", lease)
        with pytest.raises(SnapshotError, match="the lease is that of actor a"):
            store.saving("b", lease)
    assert store.holder("a") is None
    assert os.listdir(store.layout.leases) == []
    with pytest.raises(ActorHeldError, match="was closed"):
        store.saving("a", lease)


def test_a_save_without_a_lease_takes_it(store: DirectoryStore) -> None:
    with store.saving("a"), pytest.raises(ActorHeldError):
        store.lease("a")
    store.lease("a").close()


def test_one_save_at_a_time_with_a_lease(store: DirectoryStore) -> None:
    """Else one could rely on what the other's snapshot no longer names."""
    with store.lease("a") as lease:
        with store.saving("a", lease) as first:
            with pytest.raises(SnapshotError, match="is being saved with this lease already"):
                store.saving("a", lease)
            with pytest.raises(SnapshotError, match="is being saved with this lease already"):
                store.delete("a", lease)
            first.commit(manifest_of([]))
            first.close()
        with store.saving("a", lease):  # given up
            pass
        store.saving("a", lease).close()


HOLD = """
import os, sys
from wasmetal.actor.store import DirectoryStore
lease = DirectoryStore(sys.argv[1]).lease("a")
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_lease_ends_with_its_process(store: DirectoryStore) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store.layout.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert (found := store.holder("a"))
        assert found.pid == pid
        with pytest.raises(ActorHeldError, match=f"process {pid} on"):
            store.lease("a")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert store.holder("a") is None
    store.lease("a").close()


RACE = """
import os, sys, time
from pathlib import Path
from wasmetal.actor.store import ActorHeldError, DirectoryStore
store, inside = DirectoryStore(sys.argv[1]), Path(sys.argv[2])
print(flush=True)
sys.stdin.readline()
taken = 0
while taken < 200:
    try:
        lease = store.lease("a")
    except ActorHeldError:
        continue
    with lease:
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another is inside
        inside.unlink()
    taken += 1
print(taken)
"""


def test_processes_race_for_a_lease(store: DirectoryStore, tmp_path: Path) -> None:
    """Each removes the file that the others wait for; two are never in at once."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, store.layout.root, tmp_path / "inside"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=120) for process in processes]
    assert [(out, error) for out, error in results] == [("200\n", "")] * 2


def test_threads_race_to_thaw(store: DirectoryStore) -> None:
    """Each adds one to what the last one saved: none is lost."""
    save(store, "a", [], turn=0)

    def add() -> None:
        done = 0
        while done < 20:
            try:
                with store.lease("a") as lease:
                    with store.load("a", lease) as snapshot:
                        turn = snapshot.manifest["turn"]
                    with store.saving("a", lease) as saving:
                        saving.commit(manifest_of([], turn=turn + 1))
            except ActorHeldError:
                continue
            done += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load(store, "a")[0]["turn"] == 80


def test_a_forked_child_cannot_give_a_lease_away(store: DirectoryStore) -> None:
    with store.lease("a") as lease:
        if (child := os.fork()) == 0:
            lease.close()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(ActorHeldError):
            store.lease("a")


def test_a_forked_child_does_not_keep_what_its_parent_gives_back(store: DirectoryStore) -> None:
    save(store, "b", [])
    reader, writer = os.pipe()
    with store.lease("a"), store.load("b"):
        if (child := os.fork()) == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent has done all that follows
            os._exit(0)
    store.lease("a").close()
    assert store.gc().kept == 0
    os.close(reader)
    os.close(writer)
    os.waitpid(child, 0)


def test_what_a_holder_says_of_itself_is_checked(store: DirectoryStore) -> None:
    with store.lease("a"):
        for text in (b"", b"[]", b"{", b'{"pid": 1}', b'{"pid": 1e999, "host": "h", "since": 0}', b"[" * 5000):
            Path(store.layout.lease("a")).write_bytes(text)
            with pytest.raises(ActorHeldError, match="actor a is awake in another process"):
                store.lease("a")
            assert store.holder("a")
        Path(store.layout.lease("a")).write_text('{"pid": 7, "host": "\\u001b[2J", "since": 0}')
        with pytest.raises(ActorHeldError, match="process 7 on \N{REPLACEMENT CHARACTER}"):
            store.lease("a")
