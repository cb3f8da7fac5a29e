"""Forks of actors that are not awake: a new manifest that names the same chunks."""

from __future__ import annotations

from dataclasses import replace

from wasmetal.actor.manifest import Manifest
from wasmetal.actor.store.base import Store
from wasmetal.errors import SnapshotError
from wasmetal.host.randomness import RandomStream


def fork_stored(store: Store, actor_id: str, fork_id: str) -> None:
    """Store a fork of an actor's snapshot, as ``Actor.fork`` would make it: another name, another random generator.

    No chunk is written, and the program is not needed. The actor may be awake meanwhile: the fork has the state in
    which it was saved last. Raises SnapshotError if there is no such snapshot, it is damaged, or there is one of the
    fork's id already; ActorHeldError if somebody has an actor of that id awake.
    """
    with store.load(actor_id) as stored, store.lease(fork_id) as lease:
        if fork_id in store.actors():
            raise SnapshotError(f"there is a snapshot of actor {fork_id} already: fork to another id, or delete it")
        manifest = Manifest.from_json(stored.manifest)
        seed = RandomStream(bytes.fromhex(manifest.random_seed), manifest.random_position).derive(fork_id).seed
        fork = replace(manifest, actor=fork_id, random_seed=seed.hex(), random_position=0)
        with store.saving(fork_id, lease) as saving:
            saving.commit(fork.to_json())
