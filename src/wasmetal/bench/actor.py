"""Actors: freezing, thawing and forking a conversation, against prefilling the same tokens."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median, median_low
from typing import TypeVar

from wasmetal.actor.actor import Actor, Snapshot
from wasmetal.actor.chunks import MemoryChunks
from wasmetal.actor.manifest import Manifest, Session
from wasmetal.actor.program import ActorProgram
from wasmetal.actor.store import DirectoryStore, StoredSnapshot
from wasmetal.bench.llm import prompt_of
from wasmetal.device.base import Device
from wasmetal.errors import GuestError
from wasmetal.models import Model, load_model
from wasmetal.packaged import guest

TOKENS = 24, 512, 4096
_ROOM = 64
"""Tokens that the context has room for beyond those of the longest conversation."""
_ID = "bench"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One length of conversation, in the chat guest. Times are in seconds; medians, but for one round's own row."""

    tokens: int
    """That the session has when it is frozen."""
    nbytes: int
    """Of all chunks of the snapshot."""
    later_nbytes: int
    """Of the chunks that are new one message later."""
    prefill: float
    """From the prompt's text to the end of a reply of one token, in a new actor."""
    fork: float
    freeze: float
    """In memory, of an actor that was not frozen before."""
    freeze_later: float
    """The same actor again, one message later, where the chunks of before are."""
    save: float
    """As ``freeze``, to a store on a folder, on the disk."""
    save_later: float
    thaw: float
    """From memory, until the actor takes messages. Its sessions may not have all of their tokens yet."""
    thaw_first_token: float
    """That, and the next message to the end of a reply of one token."""
    awake_first_token: float
    """The same message, to the same end, in an actor that was not frozen: mostly a decode step."""
    load: float
    """As ``thaw``, from the store, whose files the system has in memory and whose chunks are verified."""
    load_first_token: float
    """As ``thaw_first_token``, from the store."""


def measure(
    device: Device,
    source: str,
    tokens: Sequence[int] = TOKENS,
    repeats: int = 3,
    *,
    kv_type: str | None = None,
    quantize: str | None = None,
    folder: Path | None = None,
) -> list[Row]:
    """A row for each number of tokens: medians of ``repeats`` rounds through all of them, after one to warm up.

    ``kv_type``, ``quantize``: as for :func:`load_model`. ``folder``: where temporary stores are made.
    """
    program = ActorProgram(guest("chat"))
    with load_model(source, device, context=max(tokens) + _ROOM, kv_type=kv_type, quantize=quantize) as model:
        prompts = [prompt_of(model, count) for count in tokens]
        rounds = [[_round(program, model, prompt, folder) for prompt in prompts] for _ in range(repeats + 1)]
    return [_median(rows) for rows in zip(*rounds[1:], strict=True)]


def _round(program: ActorProgram, model: Model, prompt: str, folder: Path | None) -> Row:
    models, errors = {"default": model}, bytearray()
    later = f"{prompt} And"  # the session has all but its end already

    def send(actor: Actor, text: str) -> None:
        if not actor.send(text).read():
            raise GuestError(f"the chat guest failed: {errors.decode(errors='replace').strip()}")

    def thawed(snapshot: Snapshot) -> Actor:
        return Actor.thaw(snapshot, program, models=models, stderr=errors.extend)

    arguments = ["--raw", "--greedy", "--max-tokens", "1"]
    with (
        tempfile.TemporaryDirectory(dir=folder) as path,
        Actor(program, models=models, args=arguments, stderr=errors.extend) as actor,
    ):
        store, chunks = DirectoryStore(Path(path) / "store"), MemoryChunks()
        prefill, _ = _timed(lambda: send(actor, prompt))
        fork, other = _timed(actor.fork)
        with other, store.lease(_ID) as lease:

            def save() -> None:
                with store.saving(_ID, lease) as saving:
                    saving.commit(other.freeze_into(saving).to_json())

            freeze, manifest = _timed(lambda: actor.freeze_into(chunks))
            save_first, _ = _timed(save)
            nbytes = chunks.nbytes
            awake, _ = _timed(lambda: send(actor, later))
            send(other, later)
            freeze_later, _ = _timed(lambda: actor.freeze_into(chunks))
            save_later, _ = _timed(save)
        actor.close()  # the caches of thawed ones are not to be short of room
        thaw, again = _timed(lambda: thawed(Snapshot(manifest, chunks)))
        with again:
            first_token, _ = _timed(lambda: send(again, later))
        load, (stored, again) = _timed(lambda: _loaded(store, thawed))
        with stored, again:
            stored_token, _ = _timed(lambda: send(again, later))
    [session] = (held for held in manifest.handles.held.values() if isinstance(held, Session))
    return Row(
        session.tokens,
        nbytes,
        chunks.nbytes - nbytes,
        prefill,
        fork,
        freeze,
        freeze_later,
        save_first,
        save_later,
        thaw,
        thaw + first_token,
        awake,
        load,
        load + stored_token,
    )


def _loaded(store: DirectoryStore, thawed: Callable[[Snapshot], Actor]) -> tuple[StoredSnapshot, Actor]:
    stored = store.load(_ID)
    try:
        return stored, thawed(Snapshot(Manifest.from_json(stored.manifest), stored))
    except BaseException:
        stored.close()
        raise


def _timed(action: Callable[[], T]) -> tuple[float, T]:
    begin = time.perf_counter()
    done = action()
    return time.perf_counter() - begin, done


def _median(rows: Sequence[Row]) -> Row:
    columns = [[getattr(row, each.name) for row in rows] for each in fields(Row)]
    return Row(*((median_low if isinstance(values[0], int) else median)(values) for values in columns))
