"""``wasmetal actor``: what it prints, and what it refuses. Here in this process, but for the pipe."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.actor.snapshots import load, save
from tests.cli.command import SCRIPT
from wasmetal.actor.store import DirectoryStore
from wasmetal.cli import app


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    found = DirectoryStore(tmp_path / "store")
    save(found, "chat", [b"x" * 1000, b"shared" * 100])
    save(found, "fork", [b"shared" * 100])
    return found


def wasmetal(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env=environment)


def actor(store: DirectoryStore, command: str, *arguments: object) -> str:
    done = wasmetal("actor", command, *arguments, "--store", store.layout.root)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def read(store: DirectoryStore, *arguments: Any) -> Any:
    return json.loads(actor(store, *arguments, "--json"))


def test_list_and_show(store: DirectoryStore) -> None:
    with store.lease("chat"):
        found = read(store, "list")
        assert [each["actor_id"] for each in found] == ["chat", "fork"]
        assert [each["awake"] and each["awake"]["pid"] for each in found] == [os.getpid(), None]
        assert f"process {os.getpid()} on " in actor(store, "list")
    shown = read(store, "show", "chat")
    assert (shown["chunks"], shown["chunk_bytes"]) == (2, 1600)
    assert (shown["shared_chunks"], shown["shared_bytes"], shown["shared_with"]) == (1, 600, ["fork"])
    assert (shown["algorithm"], shown["authenticated"], shown["awake"]) == ("none", False, None)
    assert "1, 600 B, with 1 other actor\n" in actor(store, "show", "chat")
    # The store keeps manifests of whatever version; what they say of the actor is another's to read.
    assert (shown["state"], "manifest" in shown["problem"]) == (None, True)


def test_from_one_store_to_another(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    file, key = tmp_path / "chat.actor", ("--key", tmp_path / "key")
    refused = wasmetal("actor", "export", "chat", file, "--store", store.layout.root, *key)
    assert (refused.exit_code, "authenticated" in refused.stderr) == (2, True)  # the store's are not signed
    done = wasmetal("actor", "export", "chat", file, "--store", store.layout.root)
    assert (done.exit_code, done.stdout, "program" in done.stderr) == (0, f"{file}\n", True)
    assert wasmetal("actor", "export", "chat", file, "--store", store.layout.root).exit_code == 2  # it exists
    other = tmp_path / "other"
    assert wasmetal("actor", "import", file, "--store", other).stdout == "chat\n"
    assert wasmetal("actor", "import", file, "--as", "again", "--store", other).stdout == "again\n"
    copy = tmp_path / "copy"
    done = wasmetal("actor", "export", "again", copy, "--store", other, "--json")
    expected = {"actor": "again", "file": str(copy), "nbytes": copy.stat().st_size, "program": False}
    assert json.loads(done.stdout) == expected
    done = wasmetal("actor", "import", copy, "--as", "third", "--store", other, "--json")
    assert json.loads(done.stdout) == {"actor": "third"}
    assert "name a file" in wasmetal("actor", "export", "again", "-", "--store", other, "--json").stderr
    assert "there is a snapshot of actor chat already" in wasmetal("actor", "import", file, "--store", other).stderr
    assert wasmetal("actor", "import", file, "--replace", "--store", other).exit_code == 0
    refused = wasmetal("actor", "import", file, "--as", "signed", "--store", other, *key)
    assert (refused.exit_code, "authenticated" in refused.stderr) == (2, True)
    assert load(DirectoryStore(other), "again") == load(store, "chat")
    assert sorted(os.listdir(tmp_path)) == ["chat.actor", "copy", "key", "other", "store"]


def test_through_a_pipe(store: DirectoryStore, tmp_path: Path) -> None:
    with subprocess.Popen(
        [SCRIPT, "actor", "export", "chat", "-", "--store", store.layout.root], stdout=subprocess.PIPE
    ) as process:
        done = subprocess.run(
            [SCRIPT, "actor", "import", "-", "--store", tmp_path / "other"],
            stdin=process.stdout,
            capture_output=True,
            timeout=100,
            check=True,
        )
    assert (process.returncode, done.stdout) == (0, b"chat\n")
    assert load(DirectoryStore(tmp_path / "other"), "chat") == load(store, "chat")


def test_rm_and_gc(store: DirectoryStore) -> None:
    assert actor(store, "rm", "chat") == "deleted chat\n"
    programs = {"removed": 0, "removed_bytes": 0, "kept": 0}
    assert read(store, "gc") == {"removed": 1, "removed_bytes": 1000, "kept": 1, "programs": programs}
    assert "removed 0 chunks" in actor(store, "gc")


def test_what_is_not_there(store: DirectoryStore, tmp_path: Path) -> None:
    assert wasmetal("actor", "list", "--store", tmp_path / "typo").stderr == (
        f"wasmetal: there is no store of actors at {tmp_path / 'typo'}\n"
    )
    assert not (tmp_path / "typo").exists()
    for command in ("show", "export", "rm"):
        done = wasmetal("actor", command, "nobody", "--store", store.layout.root)
        assert (done.exit_code, "there is no snapshot of actor nobody" in done.stderr) == (2, True)
    for command in (("import", tmp_path / "nothing"), ("list", "--key", "x")):
        done = wasmetal("actor", *command, "--store", store.layout.root)
        assert done.exit_code == 2
    assert "--store" in wasmetal("actor", "list", "--help").stdout
    assert wasmetal("actor", "list", WASMETAL_STORE=str(store.layout.root)).stdout.startswith("actor")
