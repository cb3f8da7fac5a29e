"""Freezing what has changed gives just what freezing everything gives: the same manifest, the same chunks.

And thawing in groups of chunks gives the same sessions as thawing all at once.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.actor.guests import probe, probe_program
from tests.actor.snapshots import chunk_files
from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, Snapshot, load_model
from wasmetal.actor import capture, chunks, frozen, restore
from wasmetal.actor.chunks import MemoryChunks
from wasmetal.actor.frozen import Frozen
from wasmetal.actor.manifest import Chunk, Manifest, Session
from wasmetal.actor.store import DirectoryStore, Lease, UrlStore, container, envelope
from wasmetal.device import Device
from wasmetal.errors import SnapshotError
from wasmetal.host.errno import Errno
from wasmetal.host.functions.llm import OpenSession
from wasmetal.models import Model

PAGE = 1 << 16
SESSIONS = 3
STORES = ("a", "b", "url", "memory")


@pytest.fixture(scope="module", params=["f32", "q8_0"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cpu: Device) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_llama(path, heads=2, kv_heads=2, head_dim=32, context=256)
    with load_model(path, cpu, contexts=16, kv_type=request.param) as loaded:
        yield loaded


def sessions(actor: Actor) -> dict[int, Any]:
    return {slot: each.session for slot, each in actor._guest.handles.items() if isinstance(each, OpenSession)}


def full(actor: Actor) -> tuple[Manifest, MemoryChunks]:
    """The actor frozen by somebody who knows nothing of it."""
    guest, chunks = actor._guest, MemoryChunks()
    known = guest.frozen, {slot: dict(each.digests) for slot, each in sessions(actor).items()}
    guest.frozen = Frozen()
    for each in sessions(actor).values():
        each.digests.clear()
    manifest = actor.freeze_into(chunks)
    guest.frozen = known[0]
    for slot, each in sessions(actor).items():
        each.digests = known[1][slot]
    return manifest, chunks


def state(manifest: Manifest) -> tuple[Any, ...]:
    """But for the clock, which goes on."""
    return manifest.memories, manifest.globals, manifest.tables, manifest.handles, manifest.chunks()


class Scene:
    """An actor that the test changes, and stores that it is frozen into."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.models = {"m": model}
        self.actor = Actor(probe_program(), models=self.models, id="x")
        self.folder = DirectoryStore(folder / "a"), DirectoryStore(folder / "b", verify_once=True)
        self.stores: dict[str, Any] = dict(zip("ab", self.folder, strict=True)) | {"url": UrlStore("memory://t")}
        self.leases: dict[str, Lease] = {name: store.lease("x") for name, store in self.stores.items()}
        self.kept: Snapshot | None = None
        p = probe(self.actor)
        assert p.model_open(128, p.put(128, b"m"), p.OUT) == Errno.SUCCESS
        self.opened = p.u32()
        self.handles = []
        for _ in range(SESSIONS):
            assert p.session_open(self.opened, p.OUT) == Errno.SUCCESS
            self.handles.append(p.u32())
        self.buffer = p.allocate(3 * PAGE)

    def flip(self, page: int, at: int, bit: int) -> None:
        """Change one bit of the memory."""
        probe(self.actor).bytes[page * PAGE + at] ^= 1 << bit

    def write(self, at: int, value: int) -> None:
        p = probe(self.actor)
        assert p.buffer_write(self.buffer, at, 4096, p.put(4096, bytes([value]) * 100)) == Errno.SUCCESS

    def forward(self, number: int, count: int, seed: int) -> None:
        p = probe(self.actor)
        tokens = np.random.default_rng(seed).integers(0, 200, count).astype(np.uint32)
        assert p.session_forward(self.handles[number], 8192, p.put(8192, tokens) // 4, 0) in (
            Errno.SUCCESS,
            Errno.OVERFLOW,  # the context is full
        )

    def truncate(self, number: int, keep: float) -> None:
        p = probe(self.actor)
        assert p.session_length(self.handles[number], p.OUT) == Errno.SUCCESS
        assert p.session_truncate(self.handles[number], int(p.u32() * keep)) == Errno.SUCCESS

    def fork_session(self, source: int, target: int) -> None:
        p = probe(self.actor)
        assert p.session_fork(self.handles[source], p.OUT) == Errno.SUCCESS
        forked = p.u32()
        assert p.session_close(self.handles[target]) == Errno.SUCCESS
        if source == target:
            self.handles[source] = forked
        else:
            self.handles[target] = forked

    def restore_session(self, source: int, target: int) -> None:
        """Give a session the state of another one, by its bytes."""
        guest = self.actor._guest
        by_handle = {guest.handles.handle(slot): each for slot, each in sessions(self.actor).items()}
        by_handle[self.handles[target]].restore(by_handle[self.handles[source]].save())

    def grow(self) -> None:
        self.actor._guest.call("grow", 1)

    def freeze(self, name: str) -> None:
        """Into a store: what it then has is what a full freeze gives, byte for byte."""
        if name == "memory":
            self.kept = self.actor.freeze()
            manifest = self.kept.manifest
            found = {chunk.digest: bytes(self.kept.chunks.get(chunk.digest, chunk.size)) for chunk in manifest.chunks()}
        else:
            with self.stores[name].saving("x", self.leases[name]) as saving:
                manifest = self.actor.freeze_into(saving)
                saving.commit(manifest.to_json())
            with self.stores[name].load("x") as stored:
                assert Manifest.from_json(stored.manifest) == manifest
                found = {digest: bytes(stored.get(digest, size)) for digest, size in stored.chunks.items()}
        expected, chunks = full(self.actor)
        assert state(manifest) == state(expected)
        for chunk in expected.chunks():
            assert found[chunk.digest] == bytes(chunks.get(chunk.digest, chunk.size))

    def give_up(self, name: str) -> None:
        """Freeze, and store no manifest: the next collection takes what came with it."""
        if name != "memory":
            with self.stores[name].saving("x", self.leases[name]) as saving:
                self.actor.freeze_into(saving)

    def thaw(self, name: str) -> None:
        if name == "memory" and self.kept:
            self._go_on(Actor.thaw(self.kept, probe_program(), models=self.models))
        elif name in self.stores and "x" in self.stores[name].actors():
            with self.stores[name].load("x", self.leases[name]) as stored:
                snapshot = Snapshot(Manifest.from_json(stored.manifest), stored)
                self._go_on(Actor.thaw(snapshot, probe_program(), models=self.models))

    def fork(self) -> None:
        self._go_on(self.actor.fork())

    def collect(self, name: str) -> None:
        if name in self.stores:
            self.stores[name].gc()

    def blocks(self, manifest: Manifest) -> list[Chunk]:
        """Of all sessions."""
        return [block for held in manifest.handles.held.values() if isinstance(held, Session) for block in held.blocks]

    def close(self) -> None:
        self.actor.close()
        for lease in self.leases.values():
            lease.close()
        for name in self.stores["url"].actors():
            self.stores["url"].delete(name)

    def _go_on(self, actor: Actor) -> None:
        self.actor.close()
        self.actor = actor
        handles = actor._guest.handles
        self.handles = [handles.handle(slot) for slot in sessions(actor)]


numbers = st.integers(0, SESSIONS - 1)
BEGINNING = [("forward", 0, 100, 0), ("forward", 1, 70, 1), ("flip", 1, 9000, 0), ("freeze", "a")]
steps = st.one_of(
    st.tuples(st.just("flip"), st.integers(1, 2), st.integers(0, PAGE - 1), st.integers(0, 7)),
    st.tuples(st.just("write"), st.integers(0, 3 * PAGE - 100), st.integers(0, 255)),
    st.tuples(st.just("forward"), numbers, st.sampled_from([1, 31, 32, 64, 100]), st.integers(0, 9)),
    st.tuples(st.just("truncate"), numbers, st.sampled_from([0, 0.3, 0.6, 0.9])),
    st.tuples(st.just("fork_session"), numbers, numbers),
    st.tuples(st.just("restore_session"), numbers, numbers),
    st.tuples(st.just("grow")),
    st.tuples(st.just("freeze"), st.sampled_from(STORES)),
    st.tuples(st.just("give_up"), st.sampled_from(STORES)),
    st.tuples(st.just("thaw"), st.sampled_from(STORES)),
    st.tuples(st.just("fork")),
    st.tuples(st.just("collect"), st.sampled_from(STORES)),
)


def run(model: Model, plan: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(model, Path(folder))
        try:
            for name, *arguments in [*BEGINNING, *plan]:
                getattr(scene, name)(*arguments)
            for name in STORES:
                scene.freeze(name)
        finally:
            scene.close()


@settings(max_examples=6)
@given(st.lists(steps, min_size=5, max_size=25))
@example([("truncate", 0, 0.6), ("forward", 0, 64, 7), ("freeze", "a")])
@example([("restore_session", 1, 0), ("forward", 0, 64, 7), ("freeze", "a")])
@example([("flip", 1, 30000, 5), ("freeze", "a"), ("thaw", "a"), ("flip", 1, 65535, 7), ("freeze", "a")])
@example([("give_up", "b"), ("collect", "b"), ("freeze", "b"), ("thaw", "a"), ("freeze", "b")])
def test_random_lives(model: Model, plan: list[tuple[Any, ...]]) -> None:
    run(model, plan)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=200)
@given(st.lists(steps, min_size=5, max_size=60))
def test_many_random_lives(model: Model, plan: list[tuple[Any, ...]]) -> None:
    run(model, plan)


class Counting(MemoryChunks):
    """Counts what is put."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def put(self, data: Any) -> str:
        self.sizes.append(memoryview(data).nbytes)
        return super().put(data)

    def put_several(self, several: Sequence[Any]) -> list[str]:
        self.sizes += [memoryview(data).nbytes for data in several]
        return super().put_several(several)


def test_only_what_changed_is_put(model: Model, tmp_path: Path) -> None:
    scene, sink = Scene(model, tmp_path), Counting()
    block = 32 * model.cache.position_bytes
    try:
        scene.forward(0, 100, 1)
        scene.write(2 * PAGE, 1)
        scene.flip(3, 5, 1)
        scene.actor.freeze_into(sink)
        assert sorted(sink.sizes) == sorted([block, block, block, block // 8, PAGE, PAGE, 3 * PAGE])
        sink.sizes.clear()
        scene.actor.freeze_into(sink)
        assert sink.sizes == [block // 8]  # the block that is not whole
        sink.sizes.clear()
        scene.flip(3, 6, 0)
        scene.forward(0, 31, 2)
        scene.actor.freeze_into(sink)
        # Its page, and that of the tokens; a block that is whole now, and the beginning of the next.
        assert sorted(sink.sizes) == sorted([PAGE, PAGE, block, 3 * block // 32])
        sink.sizes.clear()
        scene.truncate(0, 0.5)
        manifest = scene.actor.freeze_into(sink)
        assert block not in sink.sizes
        scene._go_on(Actor.thaw(Snapshot(manifest, sink), probe_program(), models=scene.models))
        sink.sizes.clear()
        scene.actor.freeze_into(sink)
        scene.fork()
        scene.actor.freeze_into(sink)
        assert sink.sizes == 2 * [65 % 32 * block // 32]
    finally:
        scene.close()


def test_snapshots_in_memory_share_what_did_not_change(model: Model, tmp_path: Path) -> None:
    scene = Scene(model, tmp_path)

    def shared(one: Snapshot, other: Snapshot) -> int:
        """Bytes that the two have in common, and only once."""
        common = set(one.manifest.chunks()) & set(other.manifest.chunks())
        places = [
            [np.frombuffer(each.chunks.get(chunk.digest, chunk.size), np.uint8).ctypes.data for chunk in sorted(common)]
            for each in (one, other)
        ]
        return sum(chunk.size for chunk, a, b in zip(sorted(common), *places, strict=True) if a == b)

    try:
        scene.forward(0, 100, 1)
        scene.flip(3, 5, 1)
        first = scene.actor.freeze()
        unchanged = PAGE + 3 * 32 * model.cache.position_bytes
        scene.forward(0, 20, 2)
        second = scene.actor.freeze()
        assert shared(first, second) == unchanged
        with Actor.thaw(first, probe_program(), models=scene.models) as thawed, thawed.fork() as forked:
            assert shared(first, thawed.freeze()) >= unchanged
            assert shared(first, forked.freeze()) >= unchanged
        del first
        third = scene.actor.freeze()
        assert shared(second, third) >= unchanged
        del second
        assert state(scene.actor.freeze().manifest) == state(third.manifest)
    finally:
        scene.close()


def test_a_changed_bit_anywhere_in_a_page_is_seen(model: Model, tmp_path: Path) -> None:
    scene, sink = Scene(model, tmp_path), MemoryChunks()
    try:
        scene.actor.freeze_into(sink)
        for at in (0, 1, 4095, 4096, PAGE - 8, PAGE - 1):
            for bit in (0, 7):
                scene.flip(2, at, bit)
                pieces = dict(scene.actor.freeze_into(sink).memories[0].content.named)
                data = probe(scene.actor).bytes[2 * PAGE : 3 * PAGE]
                assert pieces[2].digest == blake3(data).hexdigest()  # type: ignore[union-attr]
                scene.flip(2, at, bit)
                assert 2 not in dict(scene.actor.freeze_into(sink).memories[0].content.named)
    finally:
        scene.close()


def test_what_is_too_much_to_be_copied_is_hashed_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "MOST", 2 * PAGE)
    scene = Scene(model, tmp_path)
    try:
        for page in range(1, 6):
            scene.flip(page, page, 0)
        for _ in range(3):
            scene.freeze("a")
            assert scene.actor._guest.frozen.nbytes == 2 * PAGE
            scene.flip(1, 100, 3)
    finally:
        scene.close()


def test_a_store_that_lost_a_chunk_gets_it_again(model: Model, tmp_path: Path) -> None:
    """Between two freezes the snapshot is deleted and collected, with and without the lease."""
    scene = Scene(model, tmp_path)
    try:
        scene.forward(0, 100, 1)
        scene.flip(3, 5, 1)
        scene.freeze("a")
        store = scene.folder[0]
        store.delete("x", scene.leases["a"])
        assert store.gc().removed > 0
        assert not chunk_files(store.layout.root)
        scene.freeze("a")
        scene.leases["a"].close()
        store.delete("x")
        store.gc()
        scene.leases["a"] = store.lease("x")
        scene.freeze("a")
    finally:
        scene.close()


def test_a_fork_stored_beside_its_original_writes_nothing_twice(model: Model, tmp_path: Path) -> None:
    scene = Scene(model, tmp_path)
    try:
        scene.forward(0, 100, 1)
        scene.flip(3, 5, 1)
        scene.freeze("a")
        store = scene.folder[0]
        before = chunk_files(store.layout.root)
        with scene.actor.fork("y") as fork, store.saving("y") as saving:
            manifest = fork.freeze_into(saving)
            store.delete("x", scene.leases["a"])
            assert store.gc().removed == 0  # what the save relies on is pinned
            saving.commit(manifest.to_json())
        assert chunk_files(store.layout.root) == before
        assert store.gc().removed == 0
        with store.load("y") as stored:
            for digest, size in stored.chunks.items():
                stored.get(digest, size)
    finally:
        scene.close()


@pytest.mark.parametrize("verify_once", [False, True])
def test_a_damaged_chunk_of_another_actor_is_written_anew(model: Model, tmp_path: Path, verify_once: bool) -> None:
    scene = Scene(model, tmp_path)
    store = DirectoryStore(tmp_path / "a", verify_once=verify_once)
    try:
        scene.forward(0, 100, 1)
        scene.freeze("a")
        digest = next(digest for digest, size in scene.leases["a"].named.items() if size == PAGE)
        path = Path(store.layout.chunk(digest))
        path.write_bytes(bytes(path.stat().st_size))
        with scene.actor.fork("y") as fork, store.saving("y") as saving:
            saving.commit(fork.freeze_into(saving).to_json())
        assert blake3(path.read_bytes()).hexdigest() == digest
    finally:
        scene.close()


@pytest.mark.parametrize("blocks", [0, 1, 2, 100])
def test_sessions_are_frozen_and_thawed_in_groups_of_chunks(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    monkeypatch.setattr(capture, "AT_ONCE", blocks * 32 * model.cache.position_bytes)
    monkeypatch.setattr(restore, "AT_ONCE", blocks * 32 * model.cache.position_bytes)
    scene = Scene(model, tmp_path)
    try:
        scene.forward(2, 31, 4)
        scene.forward(0, 110, 2)
        scene.fork_session(0, 1)
        scene.truncate(1, 0.5)
        scene.forward(1, 90, 3)
        scene.freeze("a")
        rows = [each.rows(0, [each.length])[0].tobytes() for each in sessions(scene.actor).values()]
        scene.thaw("a")
        assert [each.rows(0, [each.length])[0].tobytes() for each in sessions(scene.actor).values()] == rows
        scene.freeze("b")
    finally:
        scene.close()


def test_converted_sessions_have_other_digests(model: Model, tmp_path: Path, cpu: Device) -> None:
    scene = Scene(model, tmp_path)
    path = write_tiny_llama(tmp_path / "tiny.gguf", heads=2, kv_heads=2, head_dim=32, context=256)
    try:
        scene.forward(0, 100, 2)
        snapshot = scene.actor.freeze()
        with (
            load_model(path, cpu, kv_type="f16") as other,
            Actor.thaw(snapshot, probe_program(), models={"m": other}) as thawed,
        ):
            found = thawed.freeze()
            assert state(found.manifest) == state(full(thawed)[0])
            assert not set(scene.blocks(found.manifest)) & set(scene.blocks(snapshot.manifest))
    finally:
        scene.close()


@pytest.mark.parametrize("blocks", [1, 100])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_block_is_refused_and_nothing_is_held(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, damage: str
) -> None:
    monkeypatch.setattr(restore, "AT_ONCE", blocks * 32 * model.cache.position_bytes)
    scene = Scene(model, tmp_path)
    try:
        scene.forward(0, 150, 2)
        scene.freeze("a")
        model.reclaim()
        free = model.cache.free
        held = [
            each.blocks for each in scene.actor.freeze().manifest.handles.held.values() if isinstance(each, Session)
        ]
        path = Path(scene.folder[0].layout.chunk(held[0][3].digest))
        if damage == "missing":
            path.unlink()
        else:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        with pytest.raises(SnapshotError, match=damage.replace("changed", "damaged")):
            scene.thaw("a")
        model.reclaim()
        assert model.cache.free == free
    finally:
        scene.close()


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33: what malloc has of the system, over all heaps."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_what_is_kept_is_not_in_the_heaps_of_the_c_library() -> None:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallInfo
    gc.collect()
    before = libc.mallinfo2()
    kept = Frozen()
    for index in range(400):
        page = np.full(PAGE, index % 256, np.uint8)
        kept.keep(("memory", 0, index), page, Chunk("0" * 64, PAGE))
    after = libc.mallinfo2()
    assert len(kept.pieces) == 400
    assert all((data == index % 256).all() for (_, _, index), (data, _) in kept.pieces.items())
    assert after.uordblks + after.hblkhd - before.uordblks - before.hblkhd < 8 << 20  # and not 25 MiB


def bytes_of(store: Any) -> dict[str, bytes]:
    with store.load("x") as stored:
        return {digest: bytes(stored.get(digest, size)) for digest, size in stored.chunks.items()}


def test_snapshots_of_version_1_are_thawed_and_go_on(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their chunks are named by SHA-256. What has not changed keeps its name where it is; all else has the new one."""
    scene = Scene(model, tmp_path)
    try:
        with monkeypatch.context() as before:
            before.setattr(chunks, "digest_of", lambda data: sha256(data).hexdigest())
            before.setattr(envelope, "VERSION", 1)
            scene.forward(0, 100, 1)
            scene.forward(1, 70, 2)
            scene.flip(1, 9000, 3)
            scene.write(70_000, 5)
            for name in ("a", "b", "url"):
                scene.freeze(name)
        header = Path(scene.folder[0].layout.snapshot("x")).read_bytes()[:12]
        assert header == b"wmactor\0\1\0\0\0"
        old = bytes_of(scene.stores["a"])
        assert all(digest == sha256(data).hexdigest() for digest, data in old.items())
        held = [each.rows(0, [each.length])[0].tobytes() for each in sessions(scene.actor).values()]
        exported = tmp_path / "exported"
        with scene.stores["a"].load("x") as stored, exported.open("wb") as out:
            container.write(out, stored)
        for name in ("a", "url"):
            scene.thaw(name)
            assert [each.rows(0, [each.length])[0].tobytes() for each in sessions(scene.actor).values()] == held
            scene.forward(0, 1, 3)  # the same for both
            with scene.stores[name].saving("x", scene.leases[name]) as saving:
                saving.commit(scene.actor.freeze_into(saving).to_json())
            found = bytes_of(scene.stores[name])
            assert set(old) & set(found)
            assert {blake3(data).hexdigest() for digest, data in found.items() if digest not in old} == set(
                found
            ) - set(old)
            expected, memory = full(scene.actor)
            assert set(found.values()) == {bytes(memory.get(each.digest, each.size)) for each in expected.chunks()}
            scene.freeze("memory")  # knows none of the old names: all are new
        third = DirectoryStore(tmp_path / "c")
        with exported.open("rb") as file:
            container.read_into(third, file)
        assert bytes_of(third) == old
        path = Path(third.layout.chunk(max(old, key=lambda digest: len(old[digest]))))
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        with pytest.raises(SnapshotError, match="is damaged: its digest differs"):
            bytes_of(third)
    finally:
        scene.close()
