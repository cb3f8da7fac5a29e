"""kill -9 at every step of a save, and of the other changes: the old state or the new one is there, whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.actor.dying import CONTENTS, prepare
from tests.actor.snapshots import chunk_files, load, manifest_of, name_of, save
from wasmetal.actor.store import DirectoryStore
from wasmetal.actor.store.system import Files
from wasmetal.errors import SnapshotError

STATES = {
    "old": (manifest_of(CONTENTS["old"], turn=1), set(CONTENTS["old"])),
    "new": (manifest_of(CONTENTS["new"], turn=2), set(CONTENTS["new"])),
}


def kill_at_every_step(act: str, folder: Path) -> list[dict[str, Any]]:
    prepare(folder / "base")
    done = subprocess.run(
        [sys.executable, "-m", "tests.actor.dying", act, folder],
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert Counter(each["status"] for each in found) == {0: 1, -signal.SIGKILL: len(found) - 1}
    return found


def state_of(store: DirectoryStore) -> str:
    loaded = load(store, "a")
    (name,) = [name for name, state in STATES.items() if state == loaded]
    return name


@pytest.mark.parametrize("act", ["save", "save-one-by-one"])
def test_a_killed_save_leaves_the_old_snapshot_or_the_new_one(tmp_path: Path, act: str) -> None:
    """However it syncs: the whole file system, or files and folders one by one."""
    found = kill_at_every_step(act, tmp_path)
    steps = Counter(each["name"] for each in found if not each["half"])
    # Two new chunks and the manifest; pins are created, written and removed too.
    assert (steps["create"], steps["rename"]) == (4, 3)
    assert steps["write"] >= 4
    assert steps["make_folder"] == 2
    if act == "save-one-by-one" or "sync_file_system" not in steps:
        assert steps["sync"] == 3 + 4 + 2  # files; four chunks' folders; the folder of those, and snapshots'
    states = []
    for each in sorted(found, key=lambda each: (each["step"], each["half"])):
        store = DirectoryStore(each["root"])
        states.append(state_of(store))
        check_goes_on(store, set(CONTENTS[states[-1]]))
    assert states == sorted(states, key=["old", "new"].index)  # first the old one, from some step on the new one
    assert set(states) == {"old", "new"}


def check_goes_on(store: DirectoryStore, contents: set[bytes]) -> None:
    """Nothing else was touched, nobody holds the actor, what was left over goes, and the next save works."""
    assert load(store, "b")[1] == {b"of b"}
    assert store.holder("a") is None
    store.gc()
    assert chunk_files(store.layout.root) == {name_of(data) for data in contents | {b"of b"}}
    assert os.listdir(store.layout.saving) == []
    save(store, "a", [b"later"])
    assert load(store, "a")[1] == {b"later"}


def test_a_killed_delete_leaves_the_snapshot_or_none(tmp_path: Path) -> None:
    states = []
    for each in kill_at_every_step("delete", tmp_path):
        store = DirectoryStore(each["root"])
        states.append("there" if "a" in store.actors() else "gone")
        if states[-1] == "there":
            assert state_of(store) == "old"
        check_goes_on(store, set(CONTENTS["old"]) if states[-1] == "there" else set())
    assert set(states) == {"there", "gone"}


def test_a_killed_collection_removes_nothing_that_is_named(tmp_path: Path) -> None:
    left = set()
    for each in kill_at_every_step("gc", tmp_path):
        store = DirectoryStore(each["root"])
        left.add(len(chunk_files(store.layout.root)))
        assert state_of(store) == "old"
        store.delete("c")
        check_goes_on(store, set(CONTENTS["old"]))
    assert len(left) > 5  # each time fewer


def test_a_store_that_was_killed_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    for each in kill_at_every_step("create", tmp_path):
        store = DirectoryStore(Path(each["root"], "fresh"))
        assert store.actors() in ([], ["a"])
        save(store, "a", CONTENTS["old"], turn=1)
        assert state_of(store) == "old"


class FullDisk(Files):
    """Has no room from one step on, until it is told otherwise."""

    def __init__(self, last: int) -> None:
        self.left = last

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path: Path) -> int:
        self._step()
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> None:
        self._step()
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)

    def sync_file_system(self, descriptor: int) -> None:
        self._step()
        super().sync_file_system(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def make_folder(self, path: Path) -> None:
        self._step()
        super().make_folder(path)


def test_a_full_disk_is_one_error_and_leaves_the_old_snapshot_or_the_new_one(tmp_path: Path) -> None:
    failed = 0
    for step in range(1000):
        store = prepare(tmp_path / str(step))
        store.files = FullDisk(step)
        opened = len(os.listdir("/dev/fd"))
        message = ""
        try:
            save(store, "a", CONTENTS["new"], turn=2)
        except SnapshotError as error:
            message = str(error)
        if not message:
            break
        failed += 1
        assert message == "cannot save actor a: No space left on device"
        assert len(os.listdir("/dev/fd")) == opened
        assert state_of(DirectoryStore(store.layout.root)) in ("old", "new")
        assert [name for name in os.listdir(store.layout.saving) if not name.endswith(".pins")] == []
        store.files = Files()
        check_goes_on(store, set(CONTENTS[state_of(store)]))
    assert failed > 15
