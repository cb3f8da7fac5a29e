"""A snapshot in one file: exported, opened where it lies, and imported."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actor.snapshots import chunk_files, load, manifest_of, name_of, read, save
from wasmetal.actor.store import ActorHeldError, DirectoryStore, HmacKey, SnapshotFile, container
from wasmetal.actor.store.envelope import seal
from wasmetal.errors import SnapshotError

KEY = HmacKey(bytes(range(32)))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def exported(store: DirectoryStore, actor_id: str, path: Path, key: HmacKey | None = None) -> Path:
    with store.load(actor_id) as snapshot, path.open("wb") as out:
        assert container.write(out, snapshot, key) == out.tell()
    return path


@given(contents=st.lists(st.binary(max_size=300) | st.sampled_from([b"a" * 16384, b"b" * 70_000, b""]), max_size=6))
def test_what_is_exported_is_imported(tmp_path_factory: Any, contents: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("stores")
    one, other = DirectoryStore(folder / "one"), DirectoryStore(folder / "other")
    state = (save(one, "a", contents, guest="chat"), set(contents))
    path = exported(one, "a", folder / "a.actor", KEY)
    with SnapshotFile(path, KEY) as opened:
        assert read(opened) == state
    with path.open("rb") as file:
        assert container.read_into(other, file, key=KEY) == "a"
    assert load(other, "a") == state
    assert read(SnapshotFile(exported(other, "a", folder / "again", KEY))) == state
    assert (folder / "again").read_bytes() == path.read_bytes()


def test_a_program_is_one_more_chunk(store: DirectoryStore, tmp_path: Path) -> None:
    _, contents = save(store, "a", [b"x" * 100]), {b"x" * 100}
    program = os.urandom(70_000)
    path = tmp_path / "a"
    with store.load("a") as snapshot, path.open("wb") as out:
        assert container.write(out, snapshot, KEY, program) == out.tell()
    with SnapshotFile(path, KEY) as opened:
        assert read(opened)[1] == contents | {program}
        assert bytes(opened.get(hashlib.sha256(program).hexdigest(), len(program))) == program
    case = tmp_path / "case"
    for at in (-1, -len(program)):
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        case.write_bytes(data)
        check_refused(store, case, KEY)


def test_chunks_lie_where_the_documentation_says(store: DirectoryStore, tmp_path: Path) -> None:
    """Read with struct alone: header, manifest, then each chunk at a multiple of 64 bytes, or of 16 KiB."""
    contents = [os.urandom(size) for size in (1, 100, 16383, 16384, 50_000)]
    manifest = save(store, "a", contents)
    data = exported(store, "a", tmp_path / "a").read_bytes()
    assert struct.unpack_from("<8sIIQ", data) == (b"wmactor\0", 2, 0, data.index(b'"version":1}') + 12 - 256)
    assert data[56:160] == b"a".ljust(104, b"\0")
    at = 256 + struct.unpack_from("<Q", data, 16)[0]
    for digest, size in manifest["chunks"]:
        multiple = 64 if size < 16384 else 16384
        at = (at + multiple - 1) // multiple * multiple
        assert name_of(data[at : at + size]) == digest
        at += size
    assert at == len(data)


def test_an_import_under_another_id(store: DirectoryStore, tmp_path: Path) -> None:
    manifest = save(store, "a", [b"x"])
    path = exported(store, "a", tmp_path / "a")
    assert container.read_into(store, path.open("rb"), actor_id="b") == "b"
    assert load(store, "b") == (manifest, {b"x"})
    with pytest.raises(SnapshotError, match="is not an actor id"):
        container.read_into(store, path.open("rb"), actor_id="../b")
    with store.lease("a"), pytest.raises(ActorHeldError):
        container.read_into(store, path.open("rb"))


def test_through_a_pipe(store: DirectoryStore, tmp_path: Path) -> None:
    state = (save(store, "a", [os.urandom(3 << 20), b"small"]), load(store, "a")[1])
    code = "import sys; from wasmetal.actor.store import *; from wasmetal.actor.store import container as c\n"
    code += "print(c.read_into(DirectoryStore(sys.argv[1]), sys.stdin.buffer))"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "other"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        with store.load("a") as snapshot:
            container.write(process.stdin, snapshot)
        assert process.communicate(timeout=60)[0] == b"a\n"
    assert load(DirectoryStore(tmp_path / "other"), "a") == state


def test_an_imported_snapshot_gets_nothing_from_the_store(store: DirectoryStore) -> None:
    """Naming another actor's chunk by its digest is not enough: the file must have it."""
    save(store, "victim", [b"secret"])
    forged = seal("thief", manifest_of([b"secret"]), None)
    for filling in (b"", bytes(-len(forged) % 64) + b"guess!"):
        with pytest.raises(SnapshotError, match=name_of(b"secret")):
            container.read_into(store, io.BytesIO(forged + filling))
    assert store.actors() == ["victim"]


@pytest.mark.parametrize("key", [None, KEY])
def test_every_flipped_bit_and_every_cut_is_found(store: DirectoryStore, tmp_path: Path, key: HmacKey | None) -> None:
    """Also without a key: the header has a digest of the manifest, and that has those of the chunks."""
    save(store, "a", [b"x" * 100, b"y" * 30])
    path = exported(store, "a", tmp_path / "a", key)
    data, case = path.read_bytes(), tmp_path / "case"
    for at in range(len(data)):
        case.write_bytes(data[:at])
        check_refused(store, case, key)
        if key is None and 56 <= at < 160:  # the id: a name that nothing vouches for
            continue
        case.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        check_refused(store, case, key)
    case.write_bytes(data + b"\0")
    check_refused(store, case, key)
    assert store.actors() == ["a"]
    assert chunk_files(store.layout.root) == {name_of(b"x" * 100), name_of(b"y" * 30)}


def check_refused(store: DirectoryStore, path: Path, key: HmacKey | None) -> None:
    with pytest.raises(SnapshotError):
        read(SnapshotFile(path, key))
    with pytest.raises(SnapshotError), path.open("rb") as file:
        container.read_into(store, file, actor_id="case", key=key)


HOSTILE = {
    "no JSON": b"{",
    "nested": b"[" * 200_000,
    "another kind": b'{"version":1,"kind":"model","chunks":[]}',
    "no version": b'{"kind":"wasmetal-actor","chunks":[]}',
    "version true": b'{"version":true,"kind":"wasmetal-actor","chunks":[]}',
    "an array": b"[]",
    "NaN": b'{"version":1,"kind":"wasmetal-actor","chunks":[],"x":NaN}',
    "a long number": b'{"version":1,"kind":"wasmetal-actor","chunks":[],"x":%s}' % (b"9" * 5000),
    "no UTF-8": b'{"version":1,"kind":"wasmetal-actor","chunks":[],"x":"\xff"}',
    "chunks null": b'{"version":1,"kind":"wasmetal-actor","chunks":null}',
    "an object": b'{"version":1,"kind":"wasmetal-actor","chunks":{"0":1}}',
    "a triple": b'{"version":1,"kind":"wasmetal-actor","chunks":[["%s",1,1]]}' % (b"0" * 64),
    "a path": b'{"version":1,"kind":"wasmetal-actor","chunks":[["../../../../etc/passwd",1]]}',
    "capitals": b'{"version":1,"kind":"wasmetal-actor","chunks":[["%s",1]]}' % (b"A" * 64),
    "a huge size": b'{"version":1,"kind":"wasmetal-actor","chunks":[["%s",%d]]}' % (b"0" * 64, 2**63),
    "an allowed huge size": b'{"version":1,"kind":"wasmetal-actor","chunks":[["%s",%d]]}' % (b"0" * 64, 2**48),
    "a negative size": b'{"version":1,"kind":"wasmetal-actor","chunks":[["%s",-1]]}' % (b"0" * 64),
    "a float": b'{"version":1,"kind":"wasmetal-actor","chunks":[["%s",1.0]]}' % (b"0" * 64),
    "twice": b'{"version":1,"kind":"wasmetal-actor","chunks":[["%s",0],["%s",0]]}' % (b"0" * 64, b"0" * 64),
    "not sorted": b'{"version":1,"kind":"wasmetal-actor","chunks":[["%s",0],["%s",0]]}' % (b"1" * 64, b"0" * 64),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_forged_manifests(store: DirectoryStore, tmp_path: Path, what: str) -> None:
    """With the right digest of what the manifest says."""
    path = tmp_path / "forged"
    path.write_bytes(forged(HOSTILE[what]))
    check_refused(store, path, None)
    (store.layout.actors / "forged.snapshot").write_bytes(forged(HOSTILE[what]))
    if what != "an allowed huge size":
        with pytest.raises(SnapshotError):
            store.load("forged")
        return
    with store.load("forged") as snapshot, pytest.raises(SnapshotError, match="missing"):
        snapshot.get("0" * 64, 2**48)


def forged(manifest: bytes, actor_id: bytes = b"forged", nbytes: int | None = None) -> bytes:
    fields = (b"wmactor\0", 2, 0, len(manifest) if nbytes is None else nbytes, hashlib.sha256(manifest).digest())
    return struct.pack("<8sIIQ32s104s32s64s", *fields, actor_id, b"", b"") + manifest


@pytest.mark.parametrize("actor_id", [b"", b"..", b"../x", b"a/b", b"A", b"a\0b", b"\xff", b"a" * 101])
def test_forged_ids(store: DirectoryStore, tmp_path: Path, actor_id: bytes) -> None:
    path = tmp_path / "forged"
    path.write_bytes(forged(b'{"version":1,"kind":"wasmetal-actor","chunks":[]}', actor_id))
    with pytest.raises(SnapshotError, match="names an actor"):
        container.read_into(store, path.open("rb"))
    check_refused(store, path, None)


@pytest.mark.parametrize("nbytes", [2**25 + 1, 2**31, 2**32, 2**63, 2**64 - 1])
def test_forged_lengths(store: DirectoryStore, tmp_path: Path, nbytes: int) -> None:
    path = tmp_path / "forged"
    path.write_bytes(forged(b"{}", nbytes=nbytes))
    check_refused(store, path, None)
