"""Processes that end by SIGKILL at each step of what they do to a store: ``python -m tests.actor.dying ACT FOLDER``.

The folder has a store ``base``. For each step there is a copy of it, in which a forked process does the act and kills
itself at that step: before it, or halfway through a write. On standard output is a JSON array of what each was doing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.actor.snapshots import save
from wasmetal.actor.store import DirectoryStore
from wasmetal.actor.store.system import Files, StrPath

OLD, NEW, SHARED, BIG = b"old " * 50, b"new " * 60, b"shared" * 70, bytes(range(256)) * 300
CONTENTS = {"old": [OLD, SHARED], "new": [NEW, SHARED, BIG, b"of b"], "b": [b"of b"]}


def act_save(root: Path, files: Files) -> None:
    save(DirectoryStore(root, files=files), "a", CONTENTS["new"], turn=2)


def act_create(root: Path, files: Files) -> None:
    save(DirectoryStore(root / "fresh", files=files), "a", CONTENTS["new"], turn=2)


def act_delete(root: Path, files: Files) -> None:
    DirectoryStore(root, files=files).delete("a")


def act_gc(root: Path, files: Files) -> None:
    with DirectoryStore(root).saving("c") as saving:
        for i in range(5):
            saving.put(b"never named %d" % i)
        saving.commit({"version": 1, "kind": "wasmetal-actor", "chunks": []})
    store = DirectoryStore(root, files=files)
    for i in range(5):
        (folder := store.layout.chunks / f"{i:02x}").mkdir(exist_ok=True)
        (folder / (f"{i:02x}" * 32)).write_bytes(b"nobody's")
    store.gc()


ACTS: dict[str, Callable[[Path, Files], None]] = {
    "save": act_save,
    "save-one-by-one": act_save,
    "create": act_create,
    "delete": act_delete,
    "gc": act_gc,
}


def prepare(root: Path) -> DirectoryStore:
    store = DirectoryStore(root)
    save(store, "a", CONTENTS["old"], turn=1)
    save(store, "b", CONTENTS["b"])
    return store


class Dying(Files):
    """Ends the process at one of its steps."""

    def __init__(self, last: int, half: bool, report: int, together: bool = True) -> None:
        self.left, self.half, self.report = last, half, report
        if not together:
            self.TOGETHER = sys.maxsize

    def create(self, path: StrPath) -> int:
        self._step("create")
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> None:
        if self.left == 0 and self.half:
            super().write(descriptor, data[: len(data) // 2])
        self._step("write")
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        super().sync(descriptor)

    def sync_file_system(self, descriptor: int) -> None:
        self._step("sync_file_system")
        super().sync_file_system(descriptor)

    def rename(self, source: StrPath, target: StrPath) -> None:
        self._step("rename")
        super().rename(source, target)

    def remove(self, path: StrPath) -> None:
        self._step("remove")
        super().remove(path)

    def make_folder(self, path: StrPath) -> None:
        self._step("make_folder")
        super().make_folder(path)

    def _step(self, name: str) -> None:
        if self.left == 0:
            os.write(self.report, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def main(act: str, folder: Path) -> None:
    found = []
    for step in range(10_000):
        found.append(killed(act, folder, step, half=False))
        if found[-1]["status"] != -signal.SIGKILL:
            break
    found += [killed(act, folder, each["step"], half=True) for each in found if each["name"] == "write"]
    json.dump(found, sys.stdout)


def killed(act: str, folder: Path, step: int, half: bool) -> dict[str, Any]:
    root = folder / f"{step}{'-half' if half else ''}"
    if act == "create":
        root.mkdir()
    else:
        shutil.copytree(folder / "base", root)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        ACTS[act](root, Dying(step, half, writer, together=not act.endswith("one-by-one")))
        os._exit(0)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    name = os.read(reader, 100).decode()
    os.close(reader)
    return {"root": str(root), "step": step, "half": half, "name": name, "status": status}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
