"""kill -9 at every step of a save, and of the other changes: the old state or the new one is there, whole."""

from __future__ import annotations

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
from tests.actor.snapshots import chunk_files, load, manifest_of, save, sha256
from wasmetal.actor.store import DirectoryStore

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
    finished = [each for each in found if each["status"] == 0]
    assert len(finished) == 2  # once without being killed before a step, once without being killed within one
    assert {each["status"] for each in found} == {0, -signal.SIGKILL}
    return found


def state_of(store: DirectoryStore) -> str:
    loaded = load(store, "a")
    (name,) = [name for name, state in STATES.items() if state == loaded]
    return name


def in_order(names: list[str], first: str, last: str) -> bool:
    """Whether the first ones are ``first`` and the rest is ``last``."""
    return names == sorted(names, key=[first, last].index) and names[-1] == last


def test_a_killed_save_leaves_the_old_snapshot_or_the_new_one(tmp_path: Path) -> None:
    found = kill_at_every_step("save", tmp_path)
    steps = Counter(each["name"] for each in found if each["root"].endswith("before"))
    # Two new chunks and the manifest; pins are created, written and removed too.
    assert (steps["create"], steps["rename"]) == (4, 3)
    assert steps["write"] >= 4
    assert steps["sync"] >= 3 + 3  # files, and the folders of chunks and of snapshots
    for kind in ("before", "half"):
        states = []
        for each in (each for each in found if each["root"].endswith(kind)):
            store = DirectoryStore(each["root"])
            states.append(state_of(store))
            check_goes_on(store, set(CONTENTS[states[-1]]))
        assert in_order(states, "old", "new"), states
        assert "old" in states


def check_goes_on(store: DirectoryStore, contents: set[bytes]) -> None:
    """Nothing else was touched, nobody holds the actor, what was left over goes, and the next save works."""
    assert load(store, "b")[1] == {b"of b"}
    assert store.holder("a") is None
    store.gc()
    assert chunk_files(store.layout.root) == {sha256(data) for data in contents | {b"of b"}}
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


@pytest.mark.slow  # some 300 folders are made, and each is a step
def test_a_store_that_was_killed_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    for each in kill_at_every_step("create", tmp_path):
        store = DirectoryStore(Path(each["root"], "fresh"))
        assert store.actors() in ([], ["a"])
        save(store, "a", CONTENTS["old"], turn=1)
        assert state_of(store) == "old"
