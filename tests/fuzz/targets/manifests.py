"""Snapshots that somebody has tampered with: the manifest's values and the chunks' bytes.

An input is a JSON array of changes to one snapshot: of an actor with every kind of state, on a tiny model. What thaws
is an actor that can be frozen again; whatever else happens is one SnapshotError, after which nothing is held.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.actor.guests import probe, probe_actor_text, wat
from tests.fuzz import noise
from tests.fuzz.target import Run, refusal
from tests.host.probe import PAGE
from tests.models.tiny import write_tiny_llama
from wasmetal import Actor, Limits, Snapshot, load_model, open_device
from wasmetal.actor.chunks import MemoryChunks
from wasmetal.actor.manifest import Manifest
from wasmetal.errors import WasmetalError
from wasmetal.host.errno import Errno

SECONDS = 60.0
MEMORY = 2 << 30

SMALL = {"qtype": "F32", "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 16, "context": 256}
LIMITS = Limits(memory_bytes=4 << 20, device_bytes=1 << 20, handles=64)
STATE = """(global (mut f64) (f64.const 1)) (table $t 2 100 funcref) (global (mut funcref) (ref.null func))
    (func $change (table.set $t (i32.const 0) (ref.func $change))) (elem declare func $change)
    (func (export "change") (call $change))"""
WORDS = ("I32", "F64", "V128", "FUNCREF", "folder", "stdin", "session", "model", "m", "00" * 32, "ff" * 32, "../x", "")


def generate(random: Random) -> bytes:
    return json.dumps([_change(random) for _ in range(random.choice([1, 1, 1, 2, 5]))]).encode()


def _change(random: Random) -> list[Any]:
    """Where (a number for each level), how, and what the new value is, or where it is taken from."""
    path = [random.random() for _ in range(6)]
    how = random.choice(["set", "set", "set", "copy", "delete", "double", "chunk"])
    value = random.choice(
        [noise.number(random), -1, random.choice(WORDS), None, True, 0.5, [], {}, [0], [noise.number(random)] * 3]
    )
    return [path, how, value, [random.random() for _ in range(6)]]


@contextmanager
def opened(device: str) -> Iterator[Run]:
    program = wat(probe_actor_text(extra=STATE))
    with (
        tempfile.TemporaryDirectory() as folder,
        open_device(device) as opened_device,
        load_model(write_tiny_llama(Path(folder, "tiny.gguf"), **SMALL), opened_device) as model,  # type: ignore[arg-type]
    ):
        with Actor(program, models={"m": model}, args=["a"], env={"B": "c"}, limits=LIMITS) as actor:
            p = probe(actor)
            p.guest.call("change")
            p.put(4096, np.random.default_rng(0).bytes(1000))
            p.buffer_write(p.allocate(5000), 100, 4096, 900)
            gone = p.allocate(64)
            p.share(PAGE, PAGE)
            p.model_open(128, p.put(128, b"m"), p.OUT)
            p.session_open(p.u32(), p.OUT)
            session = p.u32()
            assert (
                p.session_forward(session, 1024, p.put(1024, np.arange(40, dtype=np.uint32)) // 4, 0) == Errno.SUCCESS
            )
            p.session_fork(session, p.OUT)
            p.buffer_destroy(gone)
            snapshot = actor.freeze()
        model.reclaim()
        free = model.cache.free
        value = json.loads(json.dumps(snapshot.manifest.to_json()))

        def run(changes: bytes) -> Counter[str]:
            found = outcome(json.loads(changes))
            model.reclaim()
            assert model.cache.free == free, "pages of the KV cache are still held"
            return Counter([found])

        def outcome(changes: list[Any]) -> str:
            stage = "read"
            try:
                tampered, chunks = _tampered(value, snapshot, changes)
                manifest = Manifest.from_json(tampered)
                assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
                stage = "thaw"
                with Actor.thaw(Snapshot(manifest, chunks), program, models={"m": model}, limits=LIMITS) as thawed:
                    stage = "freeze"
                    thawed.freeze()
                    stage = "send"
                    thawed.send("").read()
            except WasmetalError as error:
                return refusal(stage, error)
            return "thawed"

        yield run


def _tampered(value: Any, snapshot: Snapshot, changes: list[Any]) -> tuple[Any, MemoryChunks]:
    chunks = MemoryChunks()
    for digest, size in value["chunks"]:
        chunks.put(snapshot.chunks.get(digest, size))
    for path, how, _, _ in changes:
        if how == "chunk":  # other bytes, of the same size, under a digest of their own, everywhere
            digest, size = value["chunks"][int(path[0] * len(value["chunks"]))]
            data = np.random.default_rng(int(path[1] * 2**32)).bytes(size)
            value = json.loads(json.dumps(value).replace(digest, chunks.put(data)))
            value["chunks"].sort()
    value = copy.deepcopy(value)
    for path, how, new, other in changes:
        holder, key = _place(value, path)
        if holder is None or how == "chunk":
            continue
        if how == "delete":
            del holder[key]
        elif how == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif how == "copy":
            source, name = _place(value, other)
            holder[key] = copy.deepcopy(source[name])
        else:
            holder[key] = new
    return value, chunks


def _place(value: Any, path: list[float]) -> tuple[Any, Any]:
    """A container in the value, and a key of it: each number chooses among what is there, and a large one ends."""
    holder, key = None, None
    for number in path:
        if not isinstance(value, dict | list) or not value or (key is not None and number > 0.9):
            break
        keys = list(value) if isinstance(value, dict) else range(len(value))
        holder, key = value, keys[int(number * len(keys))]
        value = holder[key]
    return holder, key
