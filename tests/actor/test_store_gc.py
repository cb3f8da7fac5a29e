"""Garbage collection beside saves and loads, in this process and in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.actor.snapshots import chunk_files, load, manifest_of, name_of, read, save
from wasmetal.actor.store import DirectoryStore, HmacKey
from wasmetal.errors import SnapshotError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_what_nothing_names_goes(store: DirectoryStore) -> None:
    save(store, "a", [b"one", b"two"])
    save(store, "b", [b"two", b"three"])
    save(store, "a", [b"four!"])
    (store.layout.chunks / ".DS_Store").write_bytes(b"of a file manager")
    (store.layout.chunks / name_of(b"one")[:2] / "note").write_bytes(b"of somebody")
    found = store.gc()
    assert (found.removed, found.removed_bytes, found.kept) == (1, 3, 3)
    left = {name_of(data) for data in (b"two", b"three", b"four!")}
    assert chunk_files(store.layout.root) == left | {".DS_Store", "note"}
    assert store.gc().removed == 0


@pytest.mark.parametrize("flushed", [False, True])
def test_what_a_save_has_put_stays(store: DirectoryStore, flushed: bool) -> None:
    """Fresh chunks, and chunks that were there already and that nothing names any more."""
    save(store, "old", [b"was there"])
    with store.saving("a") as saving:
        for data in (b"was there", b"fresh"):
            saving.put(data)
        if flushed:
            saving._flush()
        store.delete("old")
        assert store.gc().removed == 0
        saving.commit(manifest_of([b"was there", b"fresh"]))
    assert store.gc().removed == 0
    assert load(store, "a")[1] == {b"was there", b"fresh"}


def test_what_an_open_snapshot_names_stays(store: DirectoryStore) -> None:
    save(store, "a", [b"x", b"y"])
    with store.load("a") as snapshot:
        save(store, "a", [b"later"])
        store.delete("a")
        assert store.gc().removed == 1
        assert read(snapshot)[1] == {b"x", b"y"}
    assert store.gc().removed == 2


def test_a_save_between_reading_and_removing(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collection has read what is named; before it removes anything, another save names one of its candidates."""
    save(store, "a", [b"x"])
    store.delete("a")
    listed = store.layout.chunk_files

    def chunk_files_then_save() -> object:
        found = list(listed())
        monkeypatch.undo()
        save(store, "b", [b"x"])
        return iter(found)

    monkeypatch.setattr(store.layout, "chunk_files", chunk_files_then_save)
    assert store.gc().removed == 0
    assert load(store, "b")[1] == {b"x"}


def test_a_damaged_snapshot_stops_the_collection(store: DirectoryStore) -> None:
    save(store, "a", [b"x"])
    save(store, "b", [b"y"])
    path = Path(store.layout.snapshot("a"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SnapshotError, match="cut off"):
        store.gc()
    assert len(chunk_files(store.layout.root)) == 2
    store.delete("a")
    assert store.gc().removed == 1


def test_a_collection_needs_no_key(tmp_path: Path) -> None:
    save(DirectoryStore(tmp_path, key=HmacKey(bytes(32))), "a", [b"x"])
    assert DirectoryStore(tmp_path, key=HmacKey(b"1" * 32)).gc().kept == 1


def test_what_an_ended_process_left_goes(store: DirectoryStore) -> None:
    code = "import os, sys; from wasmetal.actor.store import DirectoryStore as S; s = S(sys.argv[1]).saving('a')\n"
    code += "for i in range(38): s.put(b'%d' % i)\nos._exit(0)"
    subprocess.run([sys.executable, "-c", code, store.layout.root], check=True, timeout=60, cwd=ROOT)
    assert len(os.listdir(store.layout.saving)) == 7  # pins, and six chunks that were not synced yet
    assert store.gc().removed == 32
    assert os.listdir(store.layout.saving) == []


SAVER = """
import json, os, sys, time
from random import Random
from tests.actor.snapshots import load, manifest_of
from wasmetal.actor.store import DirectoryStore

store, me, seconds = DirectoryStore(sys.argv[1]), sys.argv[2], float(sys.argv[3])
random, saves, end = Random(me), 0, time.monotonic() + seconds
while time.monotonic() < end:
    contents = [b"chunk %d" % random.randrange(30) for _ in range(random.randrange(12))]
    with store.lease(me) as lease:
        if random.random() < 0.5 and me in store.actors():
            store.load(me, lease).close()
        with store.saving(me, lease) as saving:
            for data in contents:
                saving.put(data)
            if random.random() < 0.2:
                continue
            saving.commit(manifest_of(contents))
        assert load(store, me)[1] == set(contents), me
        saves += 1
        if random.random() < 0.3:
            store.delete(me, lease)
print(json.dumps(saves))
"""


def test_collections_race_saves_of_other_processes(store: DirectoryStore) -> None:
    """Saves that share a few chunks, so that a chunk is unnamed, collected and put again all the time."""
    race(store, 1.5)


@pytest.mark.slow
def test_collections_race_saves_for_longer(store: DirectoryStore) -> None:
    race(store, 10)


def race(store: DirectoryStore, seconds: float) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAVER, store.layout.root, f"actor-{i}", str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        for i in range(3)
    ]
    removed = collections = 0
    while any(process.poll() is None for process in processes):
        removed += store.gc().removed
        collections += 1
        time.sleep(0.001)
    results = [process.communicate() for process in processes]
    assert [error.decode() for _, error in results] == [""] * 3
    assert all(json.loads(out) > 0 for out, _ in results)
    assert removed > 0
    named = {digest for actor_id in store.actors() for digest in store.load(actor_id).chunks}
    store.gc()
    for actor_id in store.actors():
        load(store, actor_id)
    assert named <= chunk_files(store.layout.root)
    print(f"{sum(json.loads(out) for out, _ in results)} saves, {collections} collections, {removed} chunks removed")
