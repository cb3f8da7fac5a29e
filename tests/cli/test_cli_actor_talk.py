"""``wasmetal actor run``, ``thaw``, ``send``, ``freeze``, ``fork`` and ``show``, here in this process."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from click.testing import Result
from typer.testing import CliRunner

from tests.actor.guests import ECHO, MESSAGE, imports
from tests.cli.command import SCRIPT
from tests.cli.pseudoterminal import CTRL_C, CTRL_D, PROMPT, Terminal, plain
from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, ActorHost, ActorType, load_model
from wasmetal.actor.actor import Snapshot
from wasmetal.actor.kept_programs import KEEP_SECONDS, Programs
from wasmetal.actor.manifest import Manifest
from wasmetal.actor.store import Collected, DirectoryStore, UrlStore
from wasmetal.cli import app
from wasmetal.device import Device
from wasmetal.errors import SnapshotError

CHAT = Path(__file__).parents[2] / "guests" / "chat.wasm"
TREE = CHAT.with_name("tree.wasm")
COUNTER = f"""(module {imports("reply_write", "timer_set", "random_fill", "message_describe", "message_read")}
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 64) "log\\0a")
  {MESSAGE}
    (i32.store8 (i32.const 96) (i32.add (i32.load8_u (i32.const 96)) (i32.const 1)))
    (drop (call $message_describe (i32.const 128)))
    (if (i32.load (i32.const 128)) ;; the timer's
      (then (i32.store (i32.const 160) (i32.const 0x21))
        (drop (call $reply_write (i32.const 160) (i32.const 1))) (return)))
    (drop (call $message_read (i32.const 256) (i32.const 1000) (i32.const 0)))
    (if (i32.eq (i32.load8_u (i32.const 256)) (i32.const 0x78)) (then unreachable)) ;; "x"
    (if (i32.eq (i32.load8_u (i32.const 256)) (i32.const 0x73)) ;; "s"
      (then (drop (call $reply_write (i32.const 256) (i32.const 1))) (loop $for_ever (br $for_ever))))
    (if (i32.eq (i32.load8_u (i32.const 256)) (i32.const 0x74)) ;; "t"
      (then (drop (call $timer_set (i64.const 0)))))
    (if (i32.eq (i32.load8_u (i32.const 256)) (i32.const 0x72)) ;; "r"
      (then (drop (call $random_fill (i32.const 512) (i32.const 8)))
        (drop (call $reply_write (i32.const 512) (i32.const 8))) (return)))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 4))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store8 (i32.const 97) (i32.add (i32.load8_u (i32.const 96)) (i32.const 0x30)))
    (drop (call $reply_write (i32.const 97) (i32.const 1)))))"""
"""Replies with the number of messages, and writes a line to its standard output. "t": it sets its timer to now, whose
message it answers with "!"; "r": it answers with eight random bytes; "x": it fails; "s": it
answers "s" and does not come to an end."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is in this folder, and neither the user's nor another test's."""
    monkeypatch.setenv("WASMETAL_STORE", str(tmp_path / "store"))


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    file = tmp_path / "counter.wasm"
    file.write_bytes(wasmtime.wat2wasm(COUNTER))
    return file


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def wasmetal(*arguments: object, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, ["actor", *map(str, arguments)], input=stdin)


def done(*arguments: object, stdin: str | bytes = "") -> str:
    found = wasmetal(*arguments, stdin=stdin)
    assert found.exit_code == 0, found.stderr
    return found.stdout


def refused(*arguments: object, stdin: str | bytes = "", expected: str = "") -> str:
    """The one line that says why. ``expected``: what is printed before."""
    found = wasmetal(*arguments, stdin=stdin)
    assert (found.exit_code, found.stdout) == (2, expected)
    assert found.stderr.startswith("wasmetal: ")
    assert found.stderr.count("\n") == 1
    return found.stderr


def snapshot(store: DirectoryStore, actor_id: str) -> dict[str, Any]:
    with store.load(actor_id) as stored:
        return stored.manifest


# ---- One actor


def test_lines_are_messages_and_the_state_is_kept(counter: Path) -> None:
    first = wasmetal("run", "--id", "c", counter, stdin="a\n\nb\r\n")
    assert (first.exit_code, first.stdout, first.stderr) == (0, "1\n2\n", "log\n" * 2)
    assert done("send", "c", "again") == "3"
    assert done("send", "c", stdin=b"all\nof it") == "4"
    assert done("thaw", "c", stdin="a\nb") == "5\n6\n"


def test_an_actor_without_an_id_gets_one(tmp_path: Path, store: DirectoryStore) -> None:
    program = tmp_path / "My Echo.wat"
    program.write_text(ECHO)
    assert done("freeze", program).strip() in store.actors()
    ran = wasmetal("run", program, stdin="hello\n")
    name = ran.stderr.removeprefix("actor ").strip()
    assert name.startswith("my-echo-")
    assert ran.stdout == f"hello{name}\n"
    assert name in store.actors()


def test_arguments_and_variables_are_the_actors(tmp_path: Path, store: DirectoryStore) -> None:
    program = tmp_path / "echo.wat"
    program.write_text(ECHO)
    done("freeze", "--id", "e", "--env", "A=b", program, "--id", "x")
    kept = snapshot(store, "e")
    assert (kept["arguments"], kept["environment"]) == (["--id", "x"], {"A": "b"})
    assert done("send", "e", "hello", "--sender", "me") == "hellomee"


def test_what_scripts_read(counter: Path) -> None:
    assert json.loads(done("freeze", "--id", "c", "--json", counter)) == {"actor": "c"}
    lines = [json.loads(line) for line in done("thaw", "c", "--json", stdin="t\na\n").splitlines()]
    assert [(line["reply"], line["timer"]) for line in lines] == [("1", False), ("!", True), ("3", False)]
    reply = json.loads(done("send", "c", "r", "--json"))
    assert reply["actor"] == "c"
    assert len(base64.b64decode(reply["reply_base64"])) == 8
    assert reply["seconds"] > 0
    assert json.loads(done("fork", "c", "d", "e", "--json")) == {"actor": "c", "forks": ["d", "e"]}


def test_a_timer_that_is_due_is_delivered_when_asked(counter: Path) -> None:
    done("run", "--id", "c", counter, stdin="a\n")
    assert "the actor's timer is not due" in refused("send", "c", "--timer")
    assert done("send", "c", "t") == "2"
    assert done("send", "c", "--timer") == "!"
    assert "the actor's timer is not due" in refused("send", "c", "--timer")
    assert "give no other" in refused("send", "c", "--timer", "a")


def test_a_message_that_fails_leaves_the_actor_as_it_was(counter: Path, store: DirectoryStore) -> None:
    done("run", "--id", "c", counter, stdin="a\n")
    before = snapshot(store, "c")
    assert "actor c stays as it was saved last" in refused("send", "c", "x")
    assert "the guest trapped" in refused("send", "c", "x", "--json")
    assert snapshot(store, "c") == before
    failed = wasmetal("thaw", "c", stdin="b\nx\nc\n")
    assert (failed.exit_code, failed.stdout) == (2, "2\n")
    assert done("send", "c", "d") == "3"  # what was answered before is kept


def test_saved_once_at_the_end(counter: Path, store: DirectoryStore) -> None:
    failed = wasmetal("run", "--id", "c", "--save-at-end", counter, stdin="a\nx\n")
    assert (failed.exit_code, failed.stdout) == (2, "1\n")
    assert "actor c was not saved" in failed.stderr
    assert store.actors() == []
    assert done("run", "--id", "c", "--save-at-end", counter, stdin="a\nb\n") == "1\n2\n"
    failed = wasmetal("thaw", "c", "--save-at-end", stdin="a\nx\n")
    assert (failed.exit_code, failed.stdout) == (2, "3\n")
    assert done("send", "c", "b") == "3"


@pytest.mark.usefixtures("interruptible")
def test_at_a_terminal(counter: Path, tmp_path: Path) -> None:
    home = {"WASMETAL_HOME": str(tmp_path)}
    with Terminal("actor", "run", "--id", "c", counter, **home) as terminal:
        assert plain(terminal.until(PROMPT)).startswith("actor c; each line is a message")
        assert terminal.line("a") == "log\n1\n"
        terminal.type(CTRL_D)
        terminal.rest()
        assert terminal.wait() == 0
    with Terminal("actor", "thaw", "c", **home) as terminal:
        terminal.until(PROMPT)
        assert terminal.line("b") == "log\n2\n"
        terminal.type(b"s\r")
        terminal.until(b"\x1b[?2004l")
        terminal.until(b"s")
        terminal.type(CTRL_C)
        assert plain(terminal.rest()).endswith("\nactor c stays as it was saved last\n")
        assert terminal.wait() == 130
    assert done("send", "c", "c") == "3"
    assert "0.1 seconds of wall time; actor c stays" in refused("send", "c", "s", "--timeout", "0.1", expected="s")


# ---- What is in the way


def test_what_is_refused(counter: Path, tmp_path: Path, store: DirectoryStore) -> None:
    done("freeze", "--id", "c", counter)
    assert "there is a snapshot of actor c already" in refused("run", "--id", "c", counter)
    assert "there is a snapshot of actor c already" in refused("fork", "c", "c2", "c")
    assert "there is no snapshot of actor nobody" in refused("send", "nobody", "a")
    assert "there is no snapshot of actor nobody" in refused("fork", "nobody")
    assert "is not an actor id" in refused("freeze", "--id", "A/B", counter)
    assert "is not an actor id" in refused("fork", "c", "A/B")
    assert "cannot read" in refused("freeze", tmp_path / "nothing.wasm")
    (tmp_path / "none.wat").write_text("(module)")
    assert "none.wat exports no function wm_actor_message" in refused("freeze", tmp_path / "none.wat")
    assert "has not the form NAME=MODEL" in refused("send", "c", "a", "--model", "x")
    with store.lease("c"):
        for command in (("send", "c", "a"), ("thaw", "c")):
            assert f"actor c is awake in process {os.getpid()} on " in refused(*command)
        done("fork", "c", "of-one-that-is-awake")
    snapshot_file = Path(store.layout.snapshot("c"))
    snapshot_file.write_bytes(snapshot_file.read_bytes()[:-1] + b"!")
    for command in (("send", "c", "a"), ("fork", "c"), ("show", "c")):
        assert "damaged" in refused(*command)


def test_folders_are_granted_again(counter: Path, tmp_path: Path) -> None:
    granted = ("--dir", f"{tmp_path}::data")
    done("freeze", "--id", "c", *granted, counter)
    assert "grant it again, or another, with --dir FOLDER::data" in refused("send", "c", "a")
    assert "cannot grant directory" in refused("send", "c", "a", "--dir", f"{tmp_path}/nothing::data")
    assert done("send", "c", "a", *granted) == "1"


def test_a_reply_that_cannot_be_printed_is_not_saved(counter: Path) -> None:
    done("freeze", "--id", "c", counter)
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([SCRIPT, "actor", "send", "c", "a"], stdout=writing, timeout=100, check=False)
    os.close(writing)
    assert ran.returncode == 1
    assert done("send", "c", "a") == "1"


def test_a_store_that_cannot_be_written(counter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something else")
    assert "cannot open the store" in refused("freeze", "--store", tmp_path / "file" / "store", counter)
    assert "there is no store of actors" in refused("send", "c", "a", "--store", tmp_path / "typo")
    done("freeze", "--id", "c", counter)
    (tmp_path / "store" / "saving").rmdir()
    (tmp_path / "store" / "saving").write_text("")
    assert "cannot save actor d" in refused("freeze", "--id", "d", counter)


def test_a_chunk_that_is_damaged(counter: Path, store: DirectoryStore) -> None:
    done("run", "--id", "c", counter, stdin="a\n")
    for digest, path in store.layout.chunk_files():
        Path(path).write_bytes(Path(path).read_bytes()[::-1])
        assert f"chunk {digest} is damaged" in refused("send", "c", "a")


# ---- Programs


def test_the_store_keeps_the_program(counter: Path, tmp_path: Path, store: DirectoryStore) -> None:
    done("freeze", "--id", "c", counter)
    binary = counter.read_bytes()
    kept = store.layout.root / "programs" / f"{hashlib.sha256(binary).hexdigest()}.wasm"
    assert kept.read_bytes() == binary
    assert kept.stat().st_mode & 0o077 == 0
    counter.rename(other := tmp_path / "elsewhere.wasm")
    assert done("send", "c", "a") == "1"
    assert snapshot(store, "c")["program"]["name"] == "counter.wasm"
    kept.unlink()
    assert "counter.wasm (SHA-256 " in (said := refused("send", "c", "a"))
    assert "--program" in said
    (tmp_path / "echo.wat").write_text(ECHO)
    assert "another program" in refused("send", "c", "a", "--program", tmp_path / "echo.wat")
    assert done("send", "c", "a", "--program", other) == "2"
    assert done("send", "c", "a") == "3"  # the store keeps it again
    kept.write_bytes(b"damaged")
    assert "name the file of elsewhere.wasm with --program" in refused("send", "c", "a")
    assert done("send", "c", "a", "--program", other) == "4"
    assert kept.read_bytes() == binary


def test_an_exported_actor_brings_its_program(counter: Path, tmp_path: Path, store: DirectoryStore) -> None:
    done("freeze", "--id", "c", counter)
    binary = counter.read_bytes()
    counter.unlink()
    file, there = tmp_path / "c.actor", ("--store", tmp_path / "there")
    found = wasmetal("export", "c", file)
    assert (found.exit_code, found.stdout, found.stderr) == (0, f"{file}\n", "")
    assert done("import", file, *there) == "c\n"
    assert done("send", "c", "a", *there) == "1"
    assert done("import", file, "--as", "again", *there) == "again\n"
    done("fork", "again", "forked", *there)
    assert done("send", "forked", "a", *there) == "1"
    other = DirectoryStore(tmp_path / "there")
    assert {path.read_bytes() for path in (other.layout.root / "programs").iterdir()} == {binary}
    listed = [snapshot(other, name)["chunks"] for name in ("again", "forked")]
    program = [hashlib.sha256(binary).hexdigest(), len(binary)]
    assert [program in chunks for chunks in listed] == [True, False]
    (again := tmp_path / "again.actor").write_bytes(wasmetal("export", "again", "-", *there).stdout_bytes)
    done("import", again, "--as", "back", "--replace")
    assert snapshot(store, "back") == snapshot(other, "again")

    for kept in (store.layout.root / "programs").iterdir():
        kept.unlink()
    found = wasmetal("export", "c", tmp_path / "alone.actor")
    assert (found.exit_code, "the store does not keep it" in found.stderr) == (0, True)
    done("import", tmp_path / "alone.actor", "--as", "alone", "--store", tmp_path / "third")
    assert "--program" in refused("send", "alone", "a", "--store", tmp_path / "third")


def test_an_actor_of_a_host_stays_one(counter: Path, store: DirectoryStore) -> None:
    """A host finds the keys of its messages again after the command has had the actor."""
    with ActorHost(store, ActorType(program=counter)) as host:
        assert host.send("c", "a", key="one").read() == b"1"
    assert done("send", "c", "a", "--program", counter) == "2"
    with ActorHost(store, ActorType(program=counter)) as host:
        assert host.send("c", "a", key="one").read() == b"1"
        assert host.send("c", "a", key="two").read() == b"3"


def test_programs_are_collected_a_day_after_the_last_snapshot(counter: Path, store: DirectoryStore) -> None:
    done("freeze", "--id", "c", counter)
    [kept] = (store.layout.root / "programs").iterdir()
    old = kept.stat().st_mtime - KEEP_SECONDS - 60
    os.utime(kept, (old, old))
    (half := kept.with_name(".half")).write_bytes(b"x")
    os.utime(half, (old, old))
    assert json.loads(done("gc", "--json"))["programs"] == {"removed": 0, "removed_bytes": 0, "kept": 1}
    assert not half.exists()
    done("rm", "c")
    done("freeze", "--id", "d", counter)
    done("rm", "d")
    assert json.loads(done("gc", "--json"))["programs"]["kept"] == 1  # younger again
    os.utime(kept, (old, old))
    removed = {"removed": 1, "removed_bytes": len(counter.read_bytes()), "kept": 0}
    assert json.loads(done("gc", "--json"))["programs"] == removed
    assert "removed 0 programs" in done("gc")


def test_programs_at_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    programs = Programs(UrlStore(f"memory://{tmp_path.name}"))
    digest = hashlib.sha256(b"a module").hexdigest()
    assert programs.find(digest) is None
    programs.keep(b"a module")
    programs.keep(b"a module")
    assert programs.find(digest) == b"a module"
    assert programs.collect() == Collected(0, 0, 1)
    monkeypatch.setattr("wasmetal.actor.kept_programs.KEEP_SECONDS", -60)
    programs.keep(b"a module")  # it is old, and written again
    assert programs.collect() == Collected(1, 8, 0)
    assert programs.find(digest) is None


def test_a_damaged_snapshot_keeps_every_program(counter: Path, store: DirectoryStore) -> None:
    done("freeze", "--id", "c", counter)
    [kept] = (store.layout.root / "programs").iterdir()
    os.utime(kept, (0, 0))
    Path(store.layout.snapshot("c")).write_bytes(b"nothing")
    with pytest.raises(SnapshotError):
        Programs(store).collect()
    assert kept.exists()


def test_a_store_at_a_url(counter: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    where = ("--store", f"memory://{tmp_path.name}")
    done("freeze", "--id", "c", *where, counter)
    assert done("send", "c", "a", *where) == "1"
    done("fork", "c", "d", *where)
    assert done("send", "d", "a", *where) == "2"
    assert "kept by the store" in done("show", "c", *where)
    assert json.loads(done("gc", "--json", *where))["programs"]["kept"] == 1


def test_a_lease_that_runs_out_is_renewed(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    from wasmetal.cli.awake import leased

    store = UrlStore(f"memory://{tmp_path.name}", lease_seconds=4)
    with leased(store, "c") as lease:
        first, end = store.objects.read("leases/c", 4096), time.monotonic() + 60
        while store.objects.read("leases/c", 4096) == first:
            assert time.monotonic() < end
            time.sleep(0.05)
        lease.check()
    assert store.holder("c") is None


def test_a_key_signs_what_is_saved(counter: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    key = ("--key", tmp_path / "key")
    done("freeze", "--id", "c", *key, counter)
    assert done("send", "c", "a", *key) == "1"
    done("fork", "c", "d", *key)
    assert "HMAC-SHA256, verified" in done("show", "d", *key)
    done("freeze", "--id", "unsigned", counter)
    for command in (("send", "unsigned", "a"), ("fork", "unsigned")):
        assert "authenticated" in refused(*command, *key)


# ---- Forks


def test_a_fork_is_the_one_that_the_actor_would_make(counter: Path, store: DirectoryStore) -> None:
    done("run", "--id", "c", counter, stdin="a\nr\n")
    with store.load("c") as stored:
        original = Actor.thaw(Snapshot(Manifest.from_json(stored.manifest), stored), counter)
    with original, original.fork(id="d") as expected:
        kept = expected.freeze().manifest.to_json()
        random = expected.send("r").read()
        number = expected.send("a").read().decode()
    chunks = {path for _, path in store.layout.chunk_files()}
    assert done("fork", "c", "d") == "d\n"
    assert {path for _, path in store.layout.chunk_files()} == chunks
    made = snapshot(store, "d")
    aside = {"used": None, "clock": None}  # which go on while the original is awake
    assert made | aside == kept | aside
    assert base64.b64decode(json.loads(done("send", "d", "r", "--json"))["reply_base64"]) == random
    assert done("send", "d", "a") == number
    assert done("send", "c", "a") == "3"


def test_a_fork_without_a_name(counter: Path, store: DirectoryStore) -> None:
    done("freeze", "--id", "c", counter)
    name = done("fork", "c").strip()
    assert name.startswith("c-")
    assert store.actors() == ["c", name]


# ---- What is shown


def test_show_draws_what_an_actor_holds(counter: Path, store: DirectoryStore) -> None:
    done("run", "--id", "c", counter, stdin="a\n")
    state = json.loads(done("show", "c", "--json"))["state"]
    program = {"name": "counter.wasm", "digest": hashlib.sha256(counter.read_bytes()).hexdigest(), "kept": True}
    assert state["program"] == program
    assert state["memories"] == [{"pages": 2, "kept": 1, "shared": 0, "zero": 0}]
    assert (state["sessions"], state["buffers"], state["timer"]) == ([], 0, None)
    assert "\n             #.\n" in done("show", "c")
    done("fork", "c", "d")
    shown = done("show", "c")
    assert "2 pages of 64 KiB: 1 kept (1 of them shared), 0 zeros, 1 as in the program\n             =.\n" in shown
    assert "with 1 other actor\n" in shown
    assert "last active  20" in shown
    done("send", "c", "t")
    assert "timer        due at 20" in done("show", "c")
    assert "\n             #.\n" in done("show", "d")


# ---- Models


def blocks_of(manifest: dict[str, Any]) -> list[Any]:
    [session] = [held for held in manifest["handles"]["held"] if held["kind"] == "session"]
    return list(session["blocks"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=512)


def test_conversations_go_on_as_if_the_actor_had_stayed_awake(tiny: Path, cpu: Device, store: DirectoryStore) -> None:
    questions = ("hello world", "and then?", "the end")
    args = ("--max-tokens", "12", "--temperature", "1.5", "--seed", "5")
    with (
        load_model(tiny, cpu) as model,
        Actor(CHAT, models={"default": model}, args=args) as awake,
    ):
        expected = [awake.send(question).read() for question in questions]
    granted = ("--device", "cpu", "--model", f"default={tiny}")
    replies = [wasmetal("run", "--id", "c", *granted, "chat", *args, stdin=f"{questions[0]}\n").stdout_bytes]
    replies += [wasmetal("send", "c", question, *granted).stdout_bytes for question in questions[1:]]
    assert replies == expected
    done("fork", "c", "d")
    wasmetal("send", "d", "hello", *granted)
    shown = json.loads(done("show", "c", "--json"))["state"]
    [session] = shown["sessions"]
    assert session["model"] == "default"
    assert session["blocks"] == -(-session["tokens"] // 32)
    blocks, theirs = ({block[0] for block in blocks_of(snapshot(store, name))} for name in ("c", "d"))
    assert 0 < session["shared"] == len(blocks & theirs) < len(blocks)
    [memory] = shown["memories"]
    assert memory["shared"] < memory["kept"] < memory["pages"]
    assert f"session      {session['tokens']} KV tokens of default, " in done("show", "c")


def test_the_sessions_of_a_tree_are_shown_together(tiny: Path) -> None:
    granted, options = ("--device", "cpu", "--model", f"default={tiny}"), ("--branches", 12, "--tokens", 3)
    done("run", "--id", "t", *granted, TREE, *options, stdin="hello world and all " * 10)
    sessions = json.loads(done("show", "t", "--json"))["state"]["sessions"]
    assert len(sessions) == 13
    whole = min(session["tokens"] for session in sessions) // 32
    assert whole > 1
    assert {session["blocks"] for session in sessions} == {whole + 1}
    assert min(session["shared"] for session in sessions) == whole
    shown = done("show", "t")
    assert shown.count("\nsession ") == 8
    assert f"5 more, {sum(session['tokens'] for session in sessions[8:])} KV tokens, " in shown
    assert f"\n             {'=' * whole}#\n" in shown


def test_models_that_are_not_granted_again(tiny: Path, tmp_path: Path) -> None:
    done("freeze", "--id", "c", "--device", "cpu", "--model", f"default={tiny}", "chat")
    said = refused("send", "c", "hello")
    assert "granted the model tiny as 'default': grant it again with --model default=MODEL" in said
    other = write_tiny_llama(tmp_path / "other.gguf", context=512, seed=1)
    assert "is other; the actor was frozen with another, tiny" in refused(
        "send", "c", "hello", "--device", "cpu", "--model", f"default={other}"
    )
    assert "no file" in refused("send", "c", "hello", "--device", "cpu", "--model", "default=nothing.gguf")


@pytest.mark.model
def test_a_model_of_the_catalogue_is_granted_again_by_itself(smollm2: Path) -> None:
    assert len(done("run", "--id", "c", "chat", "--max-tokens", "4", stdin="Hello\n")) > 1
    assert len(done("send", "c", "Another one, please.")) > 1
