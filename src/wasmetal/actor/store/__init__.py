"""Snapshots of actors, stored: on a directory, at a URL, or in one file to be carried elsewhere.

docs/snapshot-format.md describes the format and what is guaranteed.
"""

from wasmetal.actor.store.base import Collected, Entry, Save, Store, StoredSnapshot
from wasmetal.actor.store.container import SnapshotFile
from wasmetal.actor.store.directory import DirectoryStore
from wasmetal.actor.store.ed25519 import Ed25519Key
from wasmetal.actor.store.keys import HmacKey, Key
from wasmetal.actor.store.leasing import ActorHeldError, Holder, Lease
from wasmetal.actor.store.names import checked_id
from wasmetal.actor.store.opening import open_store
from wasmetal.actor.store.url import UrlStore

__all__ = [
    "ActorHeldError",
    "Collected",
    "DirectoryStore",
    "Ed25519Key",
    "Entry",
    "HmacKey",
    "Holder",
    "Key",
    "Lease",
    "Save",
    "SnapshotFile",
    "Store",
    "StoredSnapshot",
    "UrlStore",
    "checked_id",
    "open_store",
]
