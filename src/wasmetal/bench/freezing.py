"""What freezing and thawing an actor takes, beside computing its conversation again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

from wasmetal.actor.actor import Actor, Snapshot
from wasmetal.actor.chunks import ChunkSource, MemoryChunks
from wasmetal.actor.manifest import Manifest, Session
from wasmetal.actor.program import ActorProgram
from wasmetal.actor.store import DirectoryStore, Lease
from wasmetal.bench.llm import prompt_of
from wasmetal.device.base import Device
from wasmetal.models import Model, load_model
from wasmetal.packaged import guest

T = TypeVar("T")

LENGTHS = (24, 512, 4096)
"""Tokens of the first message."""
MESSAGE = "."
SETTLED = 2.1
"""Seconds after which a file that was written is remembered as verified: see ``wasmetal.actor.store.verified``."""
_ARGUMENTS = ("--greedy", "--max-tokens", "1")
_ID = "bench"


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one conversation in the chat guest. Times are in seconds."""

    tokens: int
    """Of the conversation when it was frozen."""
    nbytes: int
    """Of its chunks."""
    prefill: float
    """From the message that begins it, to a new actor, to the first token of the answer."""
    step: float
    """From one more message, ``MESSAGE``, to an actor that is awake, to the first token of the answer."""
    freeze_all: float
    """Freezing for the first time, into memory."""
    freeze: float
    """Freezing after one more message, into memory that has the snapshot before it."""
    save: float
    """The same into a folder, until it is on the disk."""
    changed_bytes: int
    """Of the chunks that this adds."""
    thaw: float
    """From memory."""
    first: float
    """From the beginning of thawing from memory, through ``MESSAGE``, to the first token of the answer."""
    load: float
    """Thawing from a folder, with all digests verified."""
    load_again: float
    """The same where this process has verified the files before (``verify_once``)."""


def measure(
    device: Device,
    source: str,
    lengths: tuple[int, ...] = LENGTHS,
    repeats: int = 5,
    folder: Path | None = None,
) -> list[Costs]:
    """Measure conversations whose first message has so many tokens: medians of ``repeats`` rounds of all steps.

    ``folder``: where to put stores, by default that of temporary files. Prefill is measured three times at most.
    Raises what :func:`load_model` and :class:`Actor` do.
    """
    with load_model(source, device, context=max(lengths) + 256, contexts=4) as model:
        return [_Conversation(model, length, folder).costs(repeats) for length in lengths]


@dataclass(frozen=True, slots=True)
class _Kept:
    manifest: Manifest
    chunks: MemoryChunks


class _Conversation:
    """Actors that all begin with the same long message."""

    def __init__(self, model: Model, length: int, folder: Path | None) -> None:
        self._models = {"default": model}
        self._prompt = prompt_of(model, length)
        self._folder = folder
        self._program = ActorProgram(guest("chat"))
        self._times: dict[str, list[float]] = {}

    def costs(self, repeats: int) -> Costs:
        """The medians."""
        for _ in range(min(repeats, 3)):
            with Actor(self._program, models=self._models, args=_ARGUMENTS, id=_ID) as actor:
                self._timed("prefill", partial(_first, actor, self._prompt))
                chunks = MemoryChunks()
                manifest = self._timed("freeze_all", partial(actor.freeze_into, chunks))
        snapshot = _Kept(manifest, chunks)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            stores = [DirectoryStore(folder), DirectoryStore(folder, verify_once=True)]
            stores[0].save(_ID, manifest.to_json(), chunks)
            time.sleep(SETTLED)
            with stores[0].lease(_ID) as lease:
                stores[0].load(_ID, lease).close()
                self._round(snapshot, stores, lease)
                self._times = {name: self._times[name] for name in ("prefill", "freeze_all")}  # that warmed up
                for _ in range(repeats):
                    changed = self._round(snapshot, stores, lease)
        sessions = [each for each in manifest.handles.held.values() if isinstance(each, Session)]
        return Costs(
            tokens=sum(session.tokens for session in sessions),
            nbytes=sum(chunk.size for chunk in manifest.chunks()),
            changed_bytes=changed,
            **{name: median(times) for name, times in self._times.items()},
        )

    def _round(self, snapshot: _Kept, stores: list[DirectoryStore], lease: Lease) -> int:
        """All but the prefill, once; return the bytes that a message has changed."""
        begin = time.perf_counter()
        with self._timed("thaw", lambda: self._thawed(snapshot.manifest, snapshot.chunks)) as actor:
            _first(actor, MESSAGE)
            self._times.setdefault("first", []).append(time.perf_counter() - begin)
            sink = MemoryChunks(snapshot.chunks)
            manifest = self._timed("freeze", lambda: actor.freeze_into(sink))
            self._timed("save", lambda: _save(actor, stores[0], lease))
            self._timed("step", lambda: _first(actor, MESSAGE))
        stores[0].save(_ID, snapshot.manifest.to_json(), snapshot.chunks, lease)
        for name, store in zip(("load", "load_again"), stores, strict=True):
            self._timed(name, partial(self._loaded, store)).close()
        return sum(chunk.size for chunk in set(manifest.chunks()) - set(snapshot.manifest.chunks()))

    def _loaded(self, store: DirectoryStore) -> Actor:
        with store.load(_ID) as stored:
            return self._thawed(Manifest.from_json(stored.manifest), stored)

    def _thawed(self, manifest: Manifest, chunks: ChunkSource) -> Actor:
        return Actor.thaw(Snapshot(manifest, chunks), self._program, models=self._models)

    def _timed(self, name: str, action: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = action()
        self._times.setdefault(name, []).append(time.perf_counter() - begin)
        return result


def _first(actor: Actor, message: str) -> None:
    """Send a message, and wait for the answer, which is one token."""
    actor.send(message).read()


def _save(actor: Actor, store: DirectoryStore, lease: Lease) -> None:
    with store.saving(_ID, lease) as saving:
        saving.commit(actor.freeze_into(saving).to_json())
