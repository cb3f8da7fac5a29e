"""Stores at URLs, in memory and on files."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actor.snapshots import load, manifest_of, name_of, read, save
from wasmetal.actor.store import ActorHeldError, DirectoryStore, HmacKey, UrlStore, open_store
from wasmetal.errors import SnapshotError

fsspec = pytest.importorskip("fsspec")
KEY = HmacKey(bytes(range(32)))


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place that is empty."""
    memory = fsspec.filesystem("memory")
    yield f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/store"
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@given(saves=st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.binary(max_size=500), max_size=5)), max_size=5))
def test_what_is_saved_is_loaded(url: str, saves: list[tuple[str, list[bytes]]]) -> None:
    expected: dict[str, Any] = {}
    stores = [UrlStore(url, key=KEY, keep_seconds=0), UrlStore(url, key=KEY, compress=has_zstandard())]
    for actor_id in stores[0].actors():
        stores[0].delete(actor_id)
    for i, (actor_id, contents) in enumerate(saves):
        expected[actor_id] = (save(stores[i % 2], actor_id, contents, turn=i), set(contents))
        stores[0].gc()
        assert stores[1].actors() == sorted(expected)
        assert all(load(stores[1], each) == expected[each] for each in expected)


def has_zstandard() -> bool:
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


def test_one_holder_at_a_time(url: str) -> None:
    store = UrlStore(url)
    with store.lease("a") as lease:
        assert (found := store.holder("a"))
        assert found.pid == os.getpid()
        for act in (store.lease, store.saving, store.delete):
            with pytest.raises(ActorHeldError, match=rf"actor a is awake in process {os.getpid()} on "):
                act("a")
        with store.saving("a", lease) as saving:
            saving.commit(manifest_of([]))
    assert store.holder("a") is None
    with pytest.raises(ActorHeldError, match="was closed"):
        store.saving("a", lease)


def test_a_lease_that_ran_out_is_taken_over_and_its_holder_cannot_save(url: str) -> None:
    save(UrlStore(url), "a", [b"first"])
    lost = UrlStore(url, lease_seconds=0.05).lease("a")
    saving = UrlStore(url).saving("a", lost)
    saving.put(b"late")
    time.sleep(0.06)
    with UrlStore(url).lease("a") as taken:
        with pytest.raises(ActorHeldError):
            saving.commit(manifest_of([b"late"]))
        lost.close()  # which does not close the other's
        taken.renew()
    assert load(UrlStore(url), "a")[1] == {b"first"}


def test_chunks_go_by_age(url: str) -> None:
    """What a save has put stays although nothing names it yet; a day later it goes."""
    store = UrlStore(url)
    with store.saving("a") as saving:
        saving.put(b"fresh")
        assert store.gc().removed == 0
        saving.commit(manifest_of([b"fresh"]))
    store.delete("a")
    assert (store.gc().removed, store.gc().kept) == (0, 1)
    assert UrlStore(url, keep_seconds=0).gc().removed == 1


def test_what_is_old_is_written_again(url: str) -> None:
    """Else a collection could remove it before the snapshot that relies on it is there."""
    store = UrlStore(url, keep_seconds=0.2)
    save(store, "a", [b"x", b"y"])
    store.delete("a")
    time.sleep(0.25)
    with store.saving("b") as saving:
        saving.put(b"x")
        assert store.gc().removed == 1
        saving.commit(manifest_of([b"x"]))
    assert load(store, "b")[1] == {b"x"}


def test_damage_is_found(url: str) -> None:
    store = UrlStore(url)
    save(store, "a", [b"content"])
    name = f"chunks/{name_of(b'content')[:2]}/{name_of(b'content')}"
    for damaged in (b"conten", b"Content", b"contents"):
        store.objects.write(name, damaged)
        with store.load("a") as snapshot, pytest.raises(SnapshotError, match=name_of(b"content")):
            read(snapshot)
    store.objects.remove(name)
    with store.load("a") as snapshot, pytest.raises(SnapshotError, match="missing"):
        read(snapshot)
    data = store.objects.read("actors/a.snapshot", 10_000)
    for at in (*range(0, len(data), 7), len(data)):
        store.objects.write("actors/a.snapshot", data[:at] + b"?" + data[at + 1 :])
        with pytest.raises(SnapshotError):
            store.load("a")
    with pytest.raises(SnapshotError):
        store.gc()
    with pytest.raises(SnapshotError, match="is not an actor id"):
        store.load("../a")


class CutError(BaseException):
    """The process ends."""


def test_a_save_that_ends_at_any_step_leaves_the_old_snapshot_or_the_new_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, steps = [], 1
    old, new = ([b"old", b"both"], [b"new", b"both"])
    while not states or states[-1] != "returned":
        store = UrlStore(url, lease_seconds=0)
        store.lease_seconds = 60
        save(store, "a", old)
        system, left = store.objects._system, steps
        for name in ("pipe_file", "mv", "rm_file"):
            step = getattr(type(system), name)

            def counted(self: Any, *arguments: Any, step: Any = step, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise CutError
                return step(self, *arguments, **more)

            monkeypatch.setattr(type(system), name, counted)
        try:
            save(store, "a", new)
            states.append("returned")
        except CutError:
            states.append("ended")
        monkeypatch.undo()
        found = load(UrlStore(url), "a")
        assert found in ((manifest_of(old), set(old)), (manifest_of(new), set(new)))
        states[-1] = states[-1] if states[-1] == "returned" else "new" if found[1] == set(new) else "old"
        if store.holder("a"):
            store.objects.remove("leases/a")
        steps += 1
    assert states[:-1] == sorted(states[:-1], key=["old", "new"].index)
    assert "old" in states
    assert len(states) > 3


def test_a_bucket_that_refuses_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """As s3fs does: an object that is there already is a condition that failed, and so an argument that is invalid."""
    store = UrlStore("memory://bucket")
    pipe_file = type(store.objects._system).pipe_file

    def like_s3fs(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        try:
            pipe_file(self, path, value, mode)
        except FileExistsError as error:
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold") from error

    monkeypatch.setattr(type(store.objects._system), "pipe_file", like_s3fs)
    with store.lease("a"), pytest.raises(ActorHeldError):
        store.lease("a")
    store.lease("a").close()


def test_by_path_or_url(tmp_path: Path) -> None:
    assert isinstance(open_store(tmp_path / "one"), DirectoryStore)
    assert isinstance(open_store(f"file://{tmp_path}/one"), DirectoryStore)
    assert isinstance(open_store("memory://one"), UrlStore)
    with pytest.raises(SnapshotError, match="nosuch"):
        open_store("nosuch://one")
    with pytest.raises(SnapshotError, match="not a store at a URL"):
        UrlStore(f"file://{tmp_path}/one")
