"""The store on a directory: what is saved is loaded, whatever else the store holds."""

from __future__ import annotations

import gc
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actor.snapshots import chunk_files, load, manifest_of, name_of, save
from wasmetal.actor.chunks import MemoryChunks
from wasmetal.actor.store import DirectoryStore, Ed25519Key, HmacKey, Key, chunk_bytes
from wasmetal.errors import SnapshotError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
CONTENTS = st.lists(st.binary(max_size=2000) | st.integers(0, 255).map(lambda byte: bytes([byte]) * 70_000), max_size=6)
SECRET = HmacKey(bytes(range(32)))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def keys() -> dict[str, Key | None]:
    found: dict[str, Key | None] = {"none": None, "HMAC-SHA256": SECRET}
    with suppress(SnapshotError):  # without cryptography
        found["Ed25519"] = Ed25519Key.from_private(bytes(32))
    return found


@given(contents=CONTENTS, more=st.dictionaries(st.sampled_from(["guest", "sessions"]), JSON), data=st.data())
def test_what_is_saved_is_loaded(tmp_path_factory: Any, contents: list[bytes], more: Any, data: Any) -> None:
    name, key = data.draw(st.sampled_from(sorted(keys().items(), key=lambda item: item[0])))
    store = DirectoryStore(tmp_path_factory.mktemp("store"), key=key)
    manifest = save(store, "a", contents, **more)
    assert load(store, "a") == (manifest, set(contents))
    with store.load("a") as snapshot:
        assert (snapshot.actor_id, snapshot.algorithm) == ("a", name)
    assert chunk_files(store.layout.root) == {name_of(content) for content in contents}


@given(saves=st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), CONTENTS), max_size=8))
def test_actors_share_chunks_and_keep_their_own(tmp_path_factory: Any, saves: list[tuple[str, list[bytes]]]) -> None:
    """Two stores, one for each process that could be there, on one directory; collected after each save."""
    stores = [DirectoryStore(folder := tmp_path_factory.mktemp("store")), DirectoryStore(folder)]
    expected = {}
    for i, (actor_id, contents) in enumerate(saves):
        expected[actor_id] = (save(stores[i % 2], actor_id, contents), set(contents))
        stores[(i + 1) % 2].gc()
        assert stores[0].actors() == sorted(expected)
        assert all(load(stores[1], each) == expected[each] for each in expected)
    assert chunk_files(folder) == {name_of(data) for _, contents in expected.values() for data in contents}


def test_compressed_chunks_take_less_and_are_the_same(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    contents = [b"word " * 10_000, os.urandom(50_000), b"short", bytes(2 << 20)]
    store = DirectoryStore(tmp_path, compress=True)
    manifest = save(store, "a", contents)
    assert load(store, "a") == (manifest, set(contents))
    suffixes = {name_of(data): (tmp_path / "chunks" / name_of(data)[:2] / f"{name_of(data)}.zst") for data in contents}
    compressed = {data[:5] for data in contents if suffixes[name_of(data)].exists()}
    assert compressed == {b"word "}  # not what is random, too short, or mapped
    assert suffixes[name_of(contents[0])].stat().st_size < 1000
    assert load(DirectoryStore(tmp_path), "a") == (manifest, set(contents))  # who reads needs no option
    assert save(DirectoryStore(tmp_path), "b", contents)["chunks"] == manifest["chunks"]


def test_large_chunks_are_the_mapped_file(store: DirectoryStore) -> None:
    """Of this process's memory only the pages that are touched: here, by the check of the digest, all from the file."""
    content = os.urandom(300_000)
    save(store, "a", [content, b"small"])
    path = Path(store.layout.chunk(name_of(content)))
    with store.load("a") as snapshot:
        view = snapshot.get(name_of(content), len(content))
        assert view.readonly
        assert str(path) in Path("/proc/self/maps").read_text()
        array = np.frombuffer(view, np.uint8, count=256)
        opened = os.listdir("/proc/self/fd")
        views = [snapshot.get(name_of(content), len(content)) for _ in range(20)]
        assert len(os.listdir("/proc/self/fd")) == len(opened)  # a mapping holds no descriptor
    store.delete("a")
    assert store.gc().removed == 2
    assert array.tobytes() == content[:256]  # a mapping outlives the file's name
    del view, array, views
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


test_large_chunks_are_the_mapped_file = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")(
    test_large_chunks_are_the_mapped_file
)


def test_a_save_that_is_not_committed_changes_nothing(store: DirectoryStore) -> None:
    manifest = save(store, "a", [b"old"])
    with store.saving("a") as saving:
        saving.put(b"new")
    assert load(store, "a") == (manifest, {b"old"})
    assert store.gc().removed == 0  # it never got its name
    assert os.listdir(store.layout.saving) == []


def test_a_manifest_must_name_what_is_there(store: DirectoryStore) -> None:
    save(store, "b", [b"of b"])
    with store.saving("a") as saving, pytest.raises(SnapshotError, match="put it first"):
        saving.commit(manifest_of([b"nowhere"]))
    with store.saving("a") as saving, pytest.raises(SnapshotError, match="it has 3"):
        saving.commit({**manifest_of([]), "chunks": [[saving.put(b"abc"), 4]]})
    assert store.actors() == ["b"]
    with store.saving("a") as saving:
        saving.commit(manifest_of([b"of b"]))  # shared with b: not put again
    store.delete("b")
    store.gc()
    assert load(store, "a")[1] == {b"of b"}


def test_what_has_not_changed_need_not_be_put_again(store: DirectoryStore) -> None:
    """Though nothing pins it, for the lease's last snapshot names it until the new one does."""
    with store.lease("a") as lease:
        for contents in ([b"one", b"two"], [b"two", b"three"], [b"three", b"four"]):
            with store.saving("a", lease) as saving:
                saving.put(contents[1])
                if not lease.named:
                    saving.put(contents[0])
                store.gc()
                saving.commit(manifest_of(contents))
                store.gc()
            assert load(store, "a")[1] == set(contents)
        with store.saving("a", lease) as saving, pytest.raises(SnapshotError, match="put it first"):
            saving.commit(manifest_of([b"two"]))  # of the one before the last, and collected


def test_only_what_the_manifest_lists_can_be_had(store: DirectoryStore) -> None:
    save(store, "a", [b"secret of a"])
    save(store, "b", [b"of b"], pages=[name_of(b"secret of a")])
    with store.load("b") as snapshot, pytest.raises(SnapshotError, match=r"no [0-9a-f]{64} of 11 bytes"):
        snapshot.get(name_of(b"secret of a"), 11)


def test_verifying_once(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(100_000)
    save(store, "a", [content, b"small"])
    path, digest, computed = Path(store.layout.chunk(name_of(content))), name_of(content), []
    is_named = chunk_bytes.is_named
    monkeypatch.setattr(chunk_bytes, "is_named", lambda data, name: computed.append(len(data)) or is_named(data, name))

    def digests(store: DirectoryStore, now: float) -> list[int]:
        """Of how many bytes digests are computed when everything is loaded at that time."""
        monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
        computed.clear()
        load(store, "a")
        return sorted(computed)

    always, once = store, DirectoryStore(store.layout.root, verify_once=True)
    saved = path.stat().st_ctime
    assert [digests(always, saved + after) for after in (1, 10, 11)] == [[5, 100_000]] * 3
    assert [digests(once, saved + 1) for _ in range(2)] == [[5, 100_000]] * 2  # too young to be remembered
    assert [digests(once, saved + 10) for _ in range(3)] == [[5, 100_000], [5], [5]]
    time.sleep(0.05)  # times of files are coarse
    path.write_bytes(content)  # the same again, but who knows
    assert digests(once, saved + 10) == [5, 100_000]
    times = path.stat()
    time.sleep(0.05)
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with once.load("a") as snapshot, pytest.raises(SnapshotError, match=digest):
        snapshot.get(digest, len(content))


@pytest.mark.parametrize("content", [b"x" * 100, bytes(range(256)) * 400])
@pytest.mark.parametrize("damage", ["removed", "cut off", "longer", "a bit"])
def test_a_damaged_chunk_is_refused_and_mended_by_the_next_put(
    store: DirectoryStore, content: bytes, damage: str
) -> None:
    manifest = save(store, "a", [content, b"other"])
    path = Path(store.layout.chunk(name_of(content)))
    path.unlink() if damage == "removed" else path.write_bytes(
        {"cut off": content[:-1], "longer": content + b"x", "a bit": bytes([content[0] ^ 1]) + content[1:]}[damage]
    )
    with store.load("a") as snapshot:
        assert bytes(snapshot.get(name_of(b"other"), 5)) == b"other"
        with pytest.raises(SnapshotError, match=name_of(content)):
            snapshot.get(name_of(content), len(content))
    save(store, "b", [content])
    assert load(store, "a") == (manifest, {content, b"other"})


def test_a_snapshot_is_only_its_own_actor_s(store: DirectoryStore) -> None:
    save(store, "a", [b"x"])
    Path(store.layout.snapshot("a")).rename(store.layout.snapshot("b"))
    with pytest.raises(SnapshotError, match="that of a, in its place"):
        store.load("b")


def test_deleting(store: DirectoryStore) -> None:
    save(store, "a", [b"x" * 10])
    store.delete("a")
    assert store.actors() == []
    for act in (store.delete, store.load, store.entry):
        with pytest.raises(SnapshotError, match="there is no snapshot of actor a"):
            act("a")
    found = store.gc()
    assert (found.removed, found.removed_bytes, found.kept) == (1, 10, 0)


def test_what_is_known_without_loading(store: DirectoryStore) -> None:
    save(store, "a", [b"x"])
    found = store.entry("a")
    assert found.manifest_bytes == Path(store.layout.snapshot("a")).stat().st_size
    assert found.saved == Path(store.layout.snapshot("a")).stat().st_mtime


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/a", "a\0b", ".a", "-a", "a" * 101, "A", "é", "a\n", "a\\b", "a b", 3, None]
)
def test_ids_cannot_be_paths(store: DirectoryStore, name: Any) -> None:
    before = sorted(store.layout.root.rglob("*"))
    acts = (store.load, store.delete, store.lease, store.holder, store.saving, store.entry)
    for act in (*acts, lambda name: store.save(name, manifest_of([]), MemoryChunks())):
        with pytest.raises(SnapshotError, match="is not an actor id"):
            act(name)
    assert sorted(store.layout.root.rglob("*")) == before


def test_links_are_not_followed(store: DirectoryStore, tmp_path: Path) -> None:
    save(store, "a", [b"x"])
    outside = tmp_path / "outside"
    Path(store.layout.snapshot("a")).rename(outside)
    Path(store.layout.snapshot("a")).symlink_to(outside)
    with pytest.raises(SnapshotError, match="symbolic link"):
        store.load("a")
    Path(store.layout.lease("b")).symlink_to(tmp_path / "made")
    with pytest.raises(SnapshotError, match="symbolic link"):
        store.lease("b")
    assert not (tmp_path / "made").exists()


def test_nobody_else_can_read_it(store: DirectoryStore) -> None:
    save(store, "a", [b"x"])
    for path in (store.layout.root, *store.layout.root.rglob("*")):
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_a_folder_with_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SnapshotError, match=r"has 'thesis.tex'"):
        DirectoryStore(tmp_path)
    with pytest.raises(SnapshotError, match="there is no store"):
        DirectoryStore(tmp_path / "typo", create=False)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_store_of_another_version_is_refused(store: DirectoryStore) -> None:
    (store.layout.root / "format").write_text("wasmetal-actors 2\n")
    with pytest.raises(SnapshotError, match="not a store that this version"):
        DirectoryStore(store.layout.root)
