"""Snapshots of actors: damaged and forged files, opened, imported, and loaded from a store.

An input is a letter that says what it is and which key is asked for, and a file: an exported one, that of a snapshot in
a store, or that of a compressed chunk. Whatever is taken with a key is one of the snapshots that were signed with it,
unchanged; whatever is taken without one agrees with its own digests. The store's other actor stays as it was, and what
Python allocates beside the mapped file is bounded by the file's own bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.actor.snapshots import load, manifest_of, read, save
from tests.fuzz import noise
from tests.fuzz.target import Run, refusal
from wasmetal.actor.chunks import digest_of
from wasmetal.actor.store import DirectoryStore, HmacKey, Key, SnapshotFile, StoredSnapshot, container
from wasmetal.actor.store.system import Files
from wasmetal.errors import SnapshotError

SECONDS = 30.0
MEMORY = 1 << 30

KEY = HmacKey(bytes(range(32)))
CONTENTS = {
    "a": [b"words of a " * 300, b"x" * 20_000, bytes(range(256)), b""],
    "b": [b"secret of b " * 20, b"shared" * 100],
    "c": [b"shared" * 100, b"y" * 17],
}
ZIPPED = b"compressed " * 200
EXPORTED, STORED, COMPRESSED = b"e", b"s", b"z"
"""Kinds of inputs; in capitals, a key is asked for."""
FIXED = 3 << 19
"""Bytes that may be allocated whatever the file has: a compressed chunk's 1 MiB, and what Python needs to run."""
JSON = 48
"""Bytes that a byte of JSON may take as objects."""


def generate(random: Random) -> bytes:
    if random.random() < 0.1 and (frames := _frames()):
        return COMPRESSED + noise.mutated(random, random.choice(frames))
    actor, signed = random.choice("abc"), random.random() < 0.5
    kind = random.choice([EXPORTED, EXPORTED, STORED])
    data = _bases()[actor, signed, kind]
    r = random.random()
    if r < 0.3:
        data = noise.mutated(random, data, random.choice([256, 2000, None]))
    elif r < 0.45:
        data = data[: random.randrange(len(data))]
    elif r < 0.6:
        data = _field(random, data)
    elif r < 0.7:
        data = _bases()[random.choice("abc"), signed, kind][:256] + data[256:]  # another actor's header
    else:
        data = _forged(random, data)
    asked = signed if random.random() < 0.9 else not signed
    return (kind.upper() if asked else kind) + data


def _field(random: Random, data: bytes) -> bytes:
    """A number of the header changed."""
    at, form = random.choice([(8, "<I"), (12, "<I"), (16, "<Q")])
    number = random.choice([noise.number(random), random.randrange(8), len(data), len(data) - 256])
    out = bytearray(data)
    struct.pack_into(form, out, at, number % (1 << 8 * struct.calcsize(form)))
    return bytes(out)


def _forged(random: Random, data: bytes) -> bytes:
    """A manifest that says something else, its length and digest those of what it says."""
    (nbytes,) = struct.unpack_from("<Q", data, 16)
    manifest, rest = json.loads(data[256 : 256 + nbytes]), data[256 + nbytes :]
    for _ in range(random.choice([1, 1, 2, 4])):
        manifest = _changed(random, manifest)
    forged = json.dumps(manifest, sort_keys=random.random() < 0.5).encode()
    if random.random() < 0.1:
        forged = noise.mutated(random, forged)
    if random.random() < 0.02:
        forged = random.choice([b"[", b'{"":', b"[[],", b"0,", b'"']) * random.choice([100, 20_000])
    out = bytearray(data[:256])
    struct.pack_into("<Q32s", out, 16, len(forged), hashlib.sha256(forged).digest())
    return bytes(out) + forged + rest


def _changed(random: Random, manifest: Any) -> Any:
    if not isinstance(manifest, dict) or not isinstance(chunks := manifest.get("chunks"), list):
        return manifest
    r, out = random.random(), list(chunks)
    at = random.randrange(len(out)) if out else 0
    if r < 0.4 and out:
        digest, size = out[at] if isinstance(out[at], list) and len(out[at]) == 2 else (out[at], 0)
        out[at] = random.choice(
            [
                [digest, noise.number(random)],
                [digest, -1 if random.random() < 0.5 else float(noise.number(random))],
                [digest_of(random.choice(CONTENTS["b"])), size],
                [f"../{digest}"[: random.randrange(64)], size],
                [digest],
                digest,
                [size, digest],
                None,
            ]
        )
        return manifest | {"chunks": out}
    if r < 0.6:
        random.shuffle(out)
        return manifest | {"chunks": out + random.choice([[], out[:1], out * 20])}
    if r < 0.75:
        other = manifest_of(CONTENTS[random.choice("abc")])["chunks"]
        return manifest | {"chunks": sorted(map(tuple, other))}
    key = random.choice(["version", "kind", "chunks", "", "sessions"])
    value = random.choice([None, 0, 2, True, 1e300, noise.number(random), "wasmetal-actor", [], {}, [[]] * 50])
    return manifest | {key: value} if random.random() < 0.8 else {k: v for k, v in manifest.items() if k != key}


class _Unsynced(Files):
    """Waits for no disk."""

    def sync(self, descriptor: int) -> None: ...

    def sync_file_system(self, descriptor: int) -> None: ...


@cache
def _bases() -> dict[tuple[str, bool, bytes], bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for signed in (False, True):
            store = DirectoryStore(Path(folder, str(signed)), key=KEY if signed else None, files=_Unsynced())
            for actor, contents in CONTENTS.items():
                save(store, actor, contents, sessions=[{"tokens": [1, 2, 3]}])
                found[actor, signed, STORED] = Path(store.layout.snapshot(actor)).read_bytes()
                out = io.BytesIO()
                with store.load(actor) as snapshot:
                    container.write(out, snapshot, store.key)
                found[actor, signed, EXPORTED] = out.getvalue()
    return found


@cache
def _frames() -> list[bytes]:
    """Compressed chunks: of what an actor has, and of a mebibyte and more of zeros."""
    try:
        import zstandard
    except ImportError:
        return []
    with_size, without = zstandard.ZstdCompressor(), zstandard.ZstdCompressor(write_content_size=False)
    bombs = [with_size.compress(bytes(size)) for size in (1 << 20, 1 << 24)]
    return [*bombs, *[each.compress(ZIPPED) for each in (with_size, with_size, with_size, without)]]


@contextmanager
def opened(device: str) -> Iterator[Run]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        stores = {key: DirectoryStore(Path(folder, "store"), key=key, files=_Unsynced()) for key in (None, KEY)}
        save(stores[KEY], "b", CONTENTS["b"])
        save(stores[KEY], "every", [data for each in CONTENTS.values() for data in each])
        save(stores[None], "z", [ZIPPED])
        zipped = Path(stores[None].layout.compressed(digest_of(ZIPPED)))
        Path(stores[None].layout.chunk(zipped.name.removesuffix(".zst"))).unlink()
        before = load(stores[KEY], "b")
        tracemalloc.start()
        ran = 0

        def run(data: bytes) -> Counter[str]:
            nonlocal ran
            kind, content = data[:1], data[1:]
            key = KEY if kind.isupper() else None
            store = stores[key]
            outcomes = Counter()
            if kind.lower() == COMPRESSED:
                zipped.write_bytes(content)
                outcomes["compressed", _bounded(content, lambda: _held(stores[None].load("z"), None))] += 1
                zipped.unlink()
            elif kind.lower() == STORED:
                Path(store.layout.snapshot("a")).write_bytes(content)
                outcomes["load", _bounded(content, lambda: _held(store.load("a"), key))] += 1
                with suppress(SnapshotError):
                    store.gc()
                Path(store.layout.snapshot("a")).unlink()
            else:
                path = Path(folder, "file")
                path.write_bytes(content)
                outcomes["open", _bounded(content, lambda: _held(SnapshotFile(path, key), key))] += 1
                outcomes["import", _bounded(content, lambda: _imported(store, path, key))] += 1
            ran += 1
            if ran % 50 == 0:
                store.gc()
            assert load(stores[KEY], "b") == before, "another actor's snapshot changed"
            assert stores[None].actors() == ["b", "every", "z"]
            return Counter({f"{stage}: {what}": n for (stage, what), n in outcomes.items()})

        yield run
        tracemalloc.stop()


def _bounded(content: bytes, act: Callable[[], None]) -> str:
    """What comes of it. Fails if too much is allocated meanwhile."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        act()
        outcome = "taken"
    except SnapshotError as error:
        outcome = refusal("refused", error)
    peak = tracemalloc.get_traced_memory()[1] - before
    promised = struct.unpack_from("<Q", content.ljust(24, b"\0"), 16)[0]
    most = FIXED + 2 * len(content) + JSON * min(promised, len(content))
    assert peak <= most, f"{peak} bytes were allocated for a file of {len(content)}"
    return outcome


def _held(snapshot: StoredSnapshot, key: Key | None) -> None:
    with snapshot:
        manifest, contents = read(snapshot)
        if key is not None:
            found = [set(each) for actor, each in CONTENTS.items() if actor == snapshot.actor_id]
            assert contents in found, "a key let a changed snapshot through"
            assert manifest["sessions"] == [{"tokens": [1, 2, 3]}]
        assert set(manifest["chunks"][i][0] for i in range(len(snapshot.chunks))) == set(snapshot.chunks)


def _imported(store: DirectoryStore, path: Path, key: Key | None) -> None:
    with path.open("rb", buffering=0) as file:
        container.read_into(store, file, actor_id="a", key=key)
    with store.load("a") as snapshot, SnapshotFile(path, key) as original:
        assert read(snapshot) == read(original)
    store.delete("a")
