"""The power fails at every step of a save: what was not synced may be lost, in part, or come in any order.

SIGKILL leaves what the process has written, so it shows nothing of that. Here a model of a disk follows each step, and
says what may be on it: of a file that was not synced any first part, of a folder's entries that were not synced any.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from tests.actor.dying import CONTENTS, act_save, prepare
from tests.actor.snapshots import load, manifest_of, save
from wasmetal.actor.store import DirectoryStore
from wasmetal.actor.store.system import Files, StrPath
from wasmetal.errors import SnapshotError

OLD = (manifest_of(CONTENTS["old"], turn=1), set(CONTENTS["old"]))
NEW = (manifest_of(CONTENTS["new"], turn=2), set(CONTENTS["new"]))


@dataclass
class Content:
    """A file: what was written, and how much of it was synced."""

    data: bytes = b""
    synced: bytes = b""


FOLDER = Content()
"""Stands for a folder."""


@dataclass
class Disk:
    """What a save has written and synced since it began."""

    changes: dict[Path, list[tuple[str, Content | None]]] = field(default_factory=dict)
    """In each folder, the entries that were made (or removed: None) and not synced."""
    kept: dict[Path, Content | None] = field(default_factory=dict)
    """Entries that were."""

    def change(self, path: Path, content: Content | None) -> None:
        self.changes.setdefault(path.parent, []).append((path.name, content))

    def sync(self, folder: Path) -> None:
        for name, content in self.changes.pop(folder, []):
            self.kept[folder / name] = content

    def after_a_power_cut(self, root: Path, random: Random) -> None:
        """Change a copy of the store as it was before the save to what may be left."""
        entries = dict(self.kept)
        for folder, changes in self.changes.items():
            entries |= {folder / name: content for name, content in changes if random.random() < 0.5}
        for path in [path for path, content in entries.items() if content is FOLDER]:
            (root / path).mkdir(exist_ok=True)
            del entries[path]
        for path, content in entries.items():
            if not (root / path).parent.exists():
                continue  # lost with its folder
            if content is None:
                (root / path).unlink(missing_ok=True)
                continue
            lost = content.data[: random.choice([0, random.randint(0, len(content.data)), len(content.data)])]
            (root / path).write_bytes(content.synced if len(content.synced) > len(lost) else lost)


class Watched(Files):
    """Tells a disk of each step, and a function after each."""

    def __init__(self, root: Path, disk: Disk, after: Callable[[], None]) -> None:
        self.root, self.disk, self.after = root, disk, after
        self.named: dict[Path, Content] = {}
        self.open: dict[int, Content] = {}

    def _name(self, path: StrPath) -> Path:
        return Path(path).relative_to(self.root)

    def create(self, path: StrPath) -> int:
        descriptor = super().create(path)
        self.open[descriptor] = self.named[self._name(path)] = content = Content()
        self.disk.change(self._name(path), content)
        self.after()
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> None:
        self.open[descriptor].data += bytes(data)
        super().write(descriptor, data)
        self.after()

    def sync(self, descriptor: int) -> None:
        self.open[descriptor].synced = self.open[descriptor].data
        self.after()

    def sync_file_system(self, descriptor: int) -> None:
        for content in self.named.values():
            content.synced = content.data
        for folder in list(self.disk.changes):
            self.disk.sync(folder)
        self.after()

    def sync_folder(self, path: StrPath) -> None:
        self.disk.sync(self._name(path))
        self.after()

    def rename(self, source: StrPath, target: StrPath) -> None:
        super().rename(source, target)
        self.disk.change(self._name(target), self.named[self._name(source)])
        self.disk.change(self._name(source), None)
        self.after()

    def make_folder(self, path: StrPath) -> None:
        super().make_folder(path)
        self.disk.change(self._name(path), FOLDER)
        self.after()

    def remove(self, path: StrPath) -> None:
        super().remove(path)
        self.disk.change(self._name(path), None)
        self.after()


Act = Callable[[Path, Files], None]


class OneByOne(Watched):
    """Syncs each file and folder, as where the system cannot sync a file system."""

    TOGETHER = sys.maxsize


WAYS = pytest.mark.parametrize("files", [Watched, OneByOne])


class Unsynced(Files):
    """Waits for no disk: for stores that nobody needs after the test."""

    def sync(self, descriptor: int) -> None: ...

    def sync_file_system(self, descriptor: int) -> None: ...


def cuts(
    tmp_path: Path, act: Act, count: int, files: type[Watched] = Watched, go_on: bool = True
) -> tuple[list[str], list[str]]:
    """What there is of actor a after so many power cuts at each step of an act, and after it has ended."""
    root, base = tmp_path / "store", tmp_path / "base"
    prepare(base)
    shutil.copytree(base, root)
    disk, random, during, after = Disk(), Random(1), [], []

    def cut(states: list[str] = during) -> None:
        for _ in range(count):
            left = tmp_path / "left"
            shutil.copytree(base, left)
            disk.after_a_power_cut(left, random)
            states.append(state_of(store := DirectoryStore(left, files=Unsynced())))
            if go_on:
                assert load(store, "b")[1] == {b"of b"}
                save(store, "a", [b"later"])
                store.gc()
                assert load(store, "a")[1] == {b"later"}
            shutil.rmtree(left)

    act(root, files(root, disk, cut))
    cut(after)
    return during, after


def state_of(store: DirectoryStore) -> str:
    try:
        found = load(store, "a")
    except SnapshotError:
        return "damaged"
    return "old" if found == OLD else "new" if found == NEW else "wrong"


@WAYS
def test_a_save_leaves_the_old_snapshot_or_the_new_one(tmp_path: Path, files: type[Watched]) -> None:
    during, after = cuts(tmp_path, act_save, 2, files)
    assert set(during) == {"old", "new"}
    assert set(after) == {"new"}  # it stays saved when save has returned


@pytest.mark.slow
@WAYS
def test_many_power_cuts(tmp_path: Path, files: type[Watched]) -> None:
    during, after = cuts(tmp_path, act_save, 40, files, go_on=False)
    assert set(during) == {"old", "new"}
    assert set(after) == {"new"}


@WAYS
def test_chunks_that_another_save_has_not_synced_are_synced_by_this_one(tmp_path: Path, files: type[Watched]) -> None:
    """The other's chunks have their names, but not on the disk, when this save finds them."""

    def act(root: Path, files: Files) -> None:
        other = DirectoryStore(root, files=files).saving("c")
        for data in CONTENTS["new"]:
            other.put(data)
        other._flush()
        act_save(root, files)
        other.close()

    during, after = cuts(tmp_path, act, 2, files, go_on=False)
    assert set(during) == {"old", "new"}
    assert set(after) == {"new"}


@pytest.mark.parametrize(
    ("files", "skipped"), [(OneByOne, "sync"), (OneByOne, "sync_folder"), (Watched, "sync_file_system")]
)
def test_the_model_shows_what_is_not_synced(tmp_path: Path, files: type[Watched], skipped: str) -> None:
    class Careless(files):  # type: ignore[misc, valid-type]
        pass

    setattr(Careless, skipped, lambda self, what: None)
    during, after = cuts(tmp_path, act_save, 3, Careless, go_on=False)
    assert "damaged" in during
    assert set(after) != {"new"}


def test_nothing_is_left_open(tmp_path: Path) -> None:
    prepare(tmp_path / "store")
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    act_save(tmp_path / "store", Files())
    assert len(os.listdir("/proc/self/fd") if before else []) == len(before)
